"""The pictures of examples: upright, in RGB, of a bounded size.

Not here: which picture an example has (`reading.records`).
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin

from mixlora.common.errors import DataError
from mixlora.data.examples import Example

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats of image files: pixels only, nothing that a decoder would have to execute."""
MAX_PIXELS = 8192 * 8192
"""The largest picture that is decoded, according to its header."""
MAX_BYTES = 2**29
"""The largest image file: `MAX_PIXELS` without compression, in four channels of 16 bits."""

Square = tuple[int, int, int]
"""The colour of the square that a picture is padded to."""

_PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Marks of the chunks in which Pillow looks for a PNG's orientation."""


def open_image(example: Example, number: int = 0) -> Image.Image:
    """One of the example's pictures, decoded, upright by its EXIF orientation, as RGB; the example keeps no pixel.

    Raises:
        DataError: it is not an image, is cut off, has over `MAX_PIXELS` pixels, or numbers whose range is not known.
    """
    with _opened(example, number) as picture:
        return _as_rgb(ImageOps.exif_transpose(picture))


def image_size(example: Example, number: int = 0) -> tuple[int, int]:
    """Width and height of a picture as `open_image` returns it, without decoding it.

    Only a PNG with metadata is decoded, because its orientation may follow its pixels.
    """
    with _opened(example, number) as picture:
        plain = isinstance(picture, PngImagePlugin.PngImageFile) and not _has_metadata(picture)
        turned = not plain and picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (picture.height, picture.width) if turned else picture.size


def squared(picture: Image.Image, colour: Square) -> Image.Image:
    """A picture in the middle of a square of a colour, as LLaVA 1.5 is trained on (image_aspect_ratio: pad)."""
    side = max(picture.size)
    found = Image.new("RGB", (side, side), colour)
    found.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return found


def _as_rgb(picture: Image.Image) -> Image.Image:
    """A picture in RGB of 8 bits; one of 16 bits or of real numbers is scaled by the range of its kind.

    Raises:
        ValueError: its numbers are of no range that its kind tells.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        largest = 2**16 - 1 if picture.mode == "I" else 1
        if not (values >= 0).all() or not (values <= largest).all():
            raise ValueError(
                f"its numbers, from {values.min():.3g} to {values.max():.3g}, are not within 0 to {largest}; scale them"
            )
        return Image.fromarray((values * (255 / largest)).round().astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def encoded_image(data: bytes) -> Image.Image:
    """A picture that a record holds as the bytes of an image file; only its header is read.

    Raises:
        Exception: whatever Pillow raises if it is no image.
    """
    return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)


def is_encoded(image: Path | Image.Image | None) -> bool:
    """Whether `open_image` decodes the picture on each call, so that several threads may call it at once."""
    return isinstance(image, Path) or _bytes(image) is not None


def content(image: Path | Image.Image | None) -> bytes:
    """The bytes of a picture's file, or the pixels of a picture without one; nothing is cached."""
    if image is None:
        return b""
    if isinstance(image, Path):
        return image.read_bytes()
    encoded = _bytes(image)
    return image.tobytes() if encoded is None else encoded


def identity(image: Path | Image.Image | None) -> str:
    """What identifies a picture: a hash of its content, wherever its file is."""
    return hashlib.sha256(content(image)).hexdigest()


def _bytes(image: Path | Image.Image | None) -> bytes | None:
    """The encoded bytes of a picture in memory that is not decoded yet; None for any other."""
    if isinstance(image, ImageFile.ImageFile) and isinstance(image.fp, io.BytesIO):
        return image.fp.getvalue()
    return None


def _has_metadata(picture: PngImagePlugin.PngImageFile) -> bool:
    """Whether a PNG that is not decoded yet may have an orientation."""
    if picture.fp is None:
        return True
    here = picture.fp.tell()
    picture.fp.seek(0)
    data = picture.fp.read()
    picture.fp.seek(here)
    return any(mark in data for mark in _PNG_METADATA)


@contextmanager
def _opened(example: Example, number: int) -> Iterator[Image.Image]:
    """A picture of the example with its header read and its size judged; what goes wrong with it is a DataError."""
    image = given = example.images[number]
    try:
        with ExitStack() as files:
            if isinstance(given, Path):
                if given.stat().st_size > MAX_BYTES or not given.is_file():
                    raise ValueError(f"it is not a regular file, or has more than {MAX_BYTES} bytes")
                given = files.enter_context(Image.open(given, formats=IMAGE_FORMATS))
            elif (
                data := _bytes(given)
            ) is not None:  # decoding the example's own object would keep its pixels in memory
                given = files.enter_context(encoded_image(data))
            if not isinstance(given, Image.Image):
                raise TypeError("it is not a picture")
            if given.width * given.height > MAX_PIXELS:
                raise ValueError(f"{given.width} x {given.height} pixels are more than the limit of {MAX_PIXELS}")
            yield given
    except Exception as error:  # Pillow's decoders raise errors of every kind on broken input
        name = str(image) if isinstance(image, Path) else "in the record"
        raise DataError(f"{example.source}: the image {name} cannot be used ({error}); replace or drop it.") from error
