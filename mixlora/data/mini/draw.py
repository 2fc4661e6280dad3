"""Drawing: words in real fonts, enlarged digits, geometric shapes. Every picture is SIZE x SIZE, RGB."""

from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 48
"""Width and height of every picture, in pixels."""

Colour = tuple[int, int, int]

INKS: dict[str, Colour] = {
    "red": (215, 25, 25),
    "green": (20, 150, 40),
    "blue": (25, 50, 215),
    "yellow": (225, 195, 0),
    "orange": (250, 125, 0),
    "purple": (125, 20, 160),
    "pink": (250, 120, 185),
    "brown": (115, 65, 20),
}
"""The eight colours of Stroop pictures: their words and their inks."""

PLAIN_INKS: dict[str, Colour] = {"black": (10, 10, 10), "gray": (125, 125, 125), "teal": (0, 128, 128)}
"""Inks that are not among the Stroop colours."""

FONTS: dict[str, tuple[str, ...]] = {
    "sans": ("DejaVuSans", "cmss10"),
    "serif": ("DejaVuSerif", "STIXGeneral", "cmr10"),
    "mono": ("DejaVuSansMono", "cmtt10"),
    "bold": ("DejaVuSans-Bold", "DejaVuSerif-Bold", "STIXGeneralBol"),
    "italic": ("DejaVuSans-Oblique", "DejaVuSerif-Italic", "STIXGeneralItalic", "cmti10"),
}
"""Style of a font -> TrueType files shipped with matplotlib."""

SHAPES = ("circle", "rectangle", "triangle")


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font of that file name at that size, in pixels."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size)


@lru_cache(maxsize=4096)
def fitting_size(name: str, text: str, width: int, height: int) -> int:
    """The largest size, in pixels, at which the text stays inside width x height."""
    for size in range(24, 6, -1):
        left, top, right, bottom = font(name, size).getbbox(text)
        if right - left <= width and bottom - top <= height:
            return size
    return 6


def paper(rng: Random, low: int = 238, high: int = 255) -> Image.Image:
    """An empty page in a light tint."""
    return Image.new("RGB", (SIZE, SIZE), (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)))


def shade(rng: Random, colour: Colour, spread: int = 10) -> Colour:
    """The colour, each channel moved by at most `spread`."""
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in colour)
    return red, green, blue


def grain(rng: Random, page: Image.Image, deviation: float = 3.0) -> Image.Image:
    """The picture with faint sensor noise, which makes every picture unique."""
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0.0, deviation, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(page, dtype=np.float32) + noise, 0, 255).astype(np.uint8))


def word(rng: Random, text: str, colour: Colour, face: str, page: Image.Image | None = None) -> Image.Image:
    """The text, as large as fits, near the centre of the page."""
    page = paper(rng) if page is None else page
    size = fitting_size(face, text, SIZE - 4, 24)
    left, _, right, _ = font(face, size).getbbox(text)
    x, baseline = (SIZE - (right - left)) // 2 - left, 31
    ImageDraw.Draw(page).text(
        (x + rng.randint(-1, 1), baseline + rng.randint(-1, 1)),
        text,
        fill=shade(rng, colour),
        font=font(face, size),
        anchor="ls",
    )
    return grain(rng, page)


def digit(rng: Random, strokes: np.ndarray, tilt: float = 0.0) -> Image.Image:
    """A handwritten digit [8, 8] of values from 0 to 16, enlarged, turned by up to `tilt` degrees, dark on light."""
    width, height = rng.randint(39, 41), rng.randint(43, 45)
    mask = Image.fromarray((strokes * 15.9).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    if tilt:
        mask = mask.rotate(rng.uniform(-tilt, tilt), Image.Resampling.BILINEAR)
    page = paper(rng)
    at = ((SIZE - width) // 2 + rng.randint(-1, 1), (SIZE - height) // 2 + rng.randint(-1, 1))
    page.paste(Image.new("RGB", mask.size, shade(rng, (35, 35, 45), 30)), at, mask)
    return grain(rng, page)


def shape(page: Image.Image, kind: str, colour: Colour, box: tuple[int, int, int, int]) -> None:
    """Draw a filled circle, rectangle or triangle into the box (left, top, right, bottom) of the page."""
    pen = ImageDraw.Draw(page)
    left, top, right, bottom = box
    if kind == "circle":
        pen.ellipse(box, fill=colour)
    elif kind == "rectangle":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=colour)
