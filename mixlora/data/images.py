"""The pictures of examples: upright, in RGB, of a bounded size. Which picture an example has is told by `records`."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin

from mixlora.common.errors import DataError
from mixlora.data.examples import Example

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What an image file may be: pixels only, nothing that a decoder would have to run."""
MAX_PIXELS = 8192 * 8192
"""The largest picture that is decoded, judged by its header."""
MAX_BYTES = 2**29
"""The largest file of one: as much as `MAX_PIXELS` need without compression, in four channels of 16 bits."""

_PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""What marks the chunks in which Pillow looks for a PNG's orientation."""


def open_image(example: Example) -> Image.Image:
    """The example's picture, decoded, upright by its EXIF orientation, as RGB; the example keeps no pixel of it.

    Raises:
        DataError: it is no image, is cut off, or has more than `MAX_PIXELS` pixels.
    """
    with _opened(example) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def image_size(example: Example) -> tuple[int, int]:
    """Width and height of the example's picture as `open_image` returns it, without decoding it.

    Only a PNG with metadata is decoded after all: they may stand behind its pixels.
    """
    with _opened(example) as picture:
        plain = isinstance(picture, PngImagePlugin.PngImageFile) and not _has_metadata(picture)
        turned = not plain and picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (picture.height, picture.width) if turned else picture.size


def encoded_image(data: bytes) -> Image.Image:
    """A picture that a record holds as the bytes of an image file; only its header is read.

    Raises:
        Exception: whatever Pillow raises on what is no image.
    """
    return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)


def is_encoded(image: Path | Image.Image | None) -> bool:
    """Whether `open_image` decodes the picture afresh each time, so that several threads may ask for it at once."""
    return isinstance(image, Path) or _bytes(image) is not None


def content(image: Path | Image.Image | None) -> bytes:
    """What a picture is made of: its file's bytes, or the pixels of one that has no file; nothing of it is kept."""
    if image is None:
        return b""
    if isinstance(image, Path):
        return image.read_bytes()
    encoded = _bytes(image)
    return image.tobytes() if encoded is None else encoded


def identity(image: Path | Image.Image | None) -> str:
    """What tells a picture apart without reading a file: its file's name and size, or a hash of its content."""
    if isinstance(image, Path):
        return f"{image} {image.stat().st_size}"
    return hashlib.sha256(content(image)).hexdigest()


def _bytes(image: Path | Image.Image | None) -> bytes | None:
    """The image file that a picture in memory is still to be decoded from."""
    if isinstance(image, ImageFile.ImageFile) and isinstance(image.fp, io.BytesIO):
        return image.fp.getvalue()
    return None


def _has_metadata(picture: PngImagePlugin.PngImageFile) -> bool:
    """Whether a PNG that is not decoded yet may tell an orientation."""
    if picture.fp is None:
        return True
    here = picture.fp.tell()
    picture.fp.seek(0)
    data = picture.fp.read()
    picture.fp.seek(here)
    return any(mark in data for mark in _PNG_METADATA)


@contextmanager
def _opened(example: Example) -> Iterator[Image.Image]:
    """The example's picture with its header read and its size judged; what goes wrong with it is a DataError."""
    given = example.image
    try:
        with ExitStack() as files:
            if isinstance(given, Path):
                if given.stat().st_size > MAX_BYTES or not given.is_file():
                    raise ValueError(f"it is no regular file, or of more than {MAX_BYTES} bytes")
                given = files.enter_context(Image.open(given, formats=IMAGE_FORMATS))
            elif (data := _bytes(given)) is not None:  # a decoded picture would stay in the example
                given = files.enter_context(encoded_image(data))
            if not isinstance(given, Image.Image):
                raise TypeError("it is no picture")
            if given.width * given.height > MAX_PIXELS:
                raise ValueError(f"{given.width} x {given.height} pixels are more than the limit of {MAX_PIXELS}")
            yield given
    except Exception as error:  # Pillow's decoders raise errors of every kind on broken input
        name = str(example.image) if isinstance(example.image, Path) else "in the record"
        raise DataError(f"{example.source}: the image {name} cannot be used ({error}); replace or drop it.") from error
