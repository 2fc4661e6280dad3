"""Tasks from files."""

from PIL import Image, ImageOps

from mixlora.data.examples import Example


def image_size(example: Example) -> tuple[int, int]:
    """Width and height."""
    return open_image(example).size


def open_image(example: Example) -> Image.Image:
    """The picture, RGB."""
    picture = example.image if isinstance(example.image, Image.Image) else Image.open(example.image)
    return ImageOps.exif_transpose(picture).convert("RGB")
