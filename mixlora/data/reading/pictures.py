"""The pictures that a record names or holds: files below a folder, bytes, base64. Nothing is downloaded."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from mixlora.common.errors import DataError, type_of
from mixlora.data.examples import Picture, Turn, pictures_first
from mixlora.data.images import MAX_BYTES, encoded_image
from mixlora.data.reading.values import Record, as_text, is_missing, shown

PLACEHOLDER = "<image>"
"""Where texts of records put a picture."""
_OTHERS = ("<video>", "<audio>")
"""Where they put what is not read."""
PICTURE_KEYS = ("image", "images", "image_path")
_BASE64, _LEAST = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0"), 64
"""How PNG, JPEG, GIF, WebP and BMP begin in base64, and more characters than a file's name would have behind that."""
_WEB = ("http://", "https://", "ftp://", "s3://", "gs://")


def read_pictures(record: Record, of_parts: Sequence[Any], root: Path, outside: bool) -> tuple[Picture, ...]:
    """The pictures of a record, in order: those of its messages' parts, filled up with those that it names itself.

    Args:
        record: as its file has it.
        of_parts: what parts of its messages hold; None for one that the record itself names.
        root: the folder that names of files are relative to, resolved.
        outside: files may also lie elsewhere.

    Raises:
        DataError: a picture cannot be used, or there are more or fewer than the parts ask for.
    """
    named = [value for key in PICTURE_KEYS for value in _listed(record.values.get(key))]
    if of_parts:
        waiting = iter(named)
        values = [next(waiting, None) if value is None else value for value in of_parts]
        if any(value is None for value in values):
            raise record.error("a message has an image, but the record names none; add `image`.")
        if left := len(list(waiting)):
            raise record.error(f"the record names {left} more images than its messages have places for.")
    else:
        values = named
    return tuple(_picture(value, record, root, outside) for value in values)


def placed(turns: tuple[Turn, ...], pictures: int, record: Record) -> tuple[Turn, ...]:
    """The turns with the places of their pictures: where parts or placeholders are, else first.

    Raises:
        DataError: placeholders and pictures are not equally many.
    """
    if any(turn.places for turn in turns):
        return turns
    if "conversations" in record.values and (other := next((one for one in _OTHERS if _has(turns, one)), None)):
        raise record.error(f"the text has {other}, which is not supported; remove it or drop the record.")
    count = sum(turn.text.count(PLACEHOLDER) for turn in turns)
    if not pictures:
        if count and "conversations" in record.values:
            raise record.error(f"the text has {PLACEHOLDER}, but the record names no image; add `image` or remove it.")
        return turns
    if not count:
        return pictures_first(turns, pictures)
    if count not in (1, pictures):
        raise record.error(f"the text has {PLACEHOLDER} {count} times, but the record has {pictures} images.")
    return tuple(_placed(turn, pictures if count == 1 else 1) for turn in turns)


def _has(turns: Sequence[Turn], placeholder: str) -> bool:
    return any(placeholder in turn.text for turn in turns)


def _placed(turn: Turn, each: int) -> Turn:
    """The turn without its placeholders, where `each` pictures stand instead; a newline behind the first goes, too."""
    first, *others = turn.text.split(PLACEHOLDER)
    text, places = first.lstrip() if not first.strip() else first, []
    for piece in others:
        places += [len(text)] * each
        text += piece.removeprefix("\n") if not text else piece
    if places and places[-1] == len(text):  # at its end
        text = text.removesuffix("\n")
        places = [min(place, len(text)) for place in places]
    return replace(turn, text=text, places=tuple(places))


def _listed(value: Any) -> list[Any]:
    """The pictures of a key: one, or a list of some."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if not is_missing(one) and one != ""]


def _picture(value: Any, record: Record, root: Path, outside: bool) -> Picture:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, bytes):
        return _decoded(value, record)
    if isinstance(value, Mapping) and value.get("bytes"):
        return _decoded(value["bytes"], record)
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("url")
    if not isinstance(value, str):
        raise record.error(f"the image is {shown(value)}, {type_of(value)}; give the name of a file.")
    if value.startswith("data:"):
        return _decoded(_from_base64(value.partition(",")[2], record), record)
    if len(value) > _LEAST and value.startswith(_BASE64):
        return _decoded(_from_base64(value, record), record)
    if value.lower().startswith(_WEB):
        raise record.error(
            f"the image {value!r:.200} is on the web; nothing is downloaded: save it, and name the file."
        )
    return _file(as_text(value, "image", record), record, root, outside)


def _from_base64(text: str, record: Record) -> bytes:
    if len(text) > MAX_BYTES * 4 // 3:
        raise record.error(f"an embedded image has more than {MAX_BYTES} bytes; give the name of a file.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise record.error(f"an embedded image is not valid base64 ({error}); drop it.") from None


def _decoded(data: bytes, record: Record) -> Image.Image:
    try:
        return encoded_image(data)
    except Exception as error:  # Pillow raises errors of every kind on broken input
        raise record.error(f"an embedded image cannot be opened ({error}); drop it.") from error


def _file(name: str, record: Record, root: Path, outside: bool) -> Path:
    """The path of an image file that is there; unless `outside`, below `root` even when links are followed."""
    refusal = f"{record.source}: the image {name!r:.200} lies outside the image folder {root}; "
    if not outside and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise DataError(refusal + "name it relative to that folder (`images`), or allow this with `outside: true`.")
    path = root / name
    try:
        found, real = path.is_file(), path.resolve()
    except (OSError, ValueError, RuntimeError):  # a name no file can have: too long, with a NUL, a loop of links
        found, real = False, path
    if not outside and not real.is_relative_to(root):
        raise DataError(refusal + "replace the link by a copy, or allow this with `outside: true`.")
    if not found:
        raise record.error(f"the image {name!r:.200} is not in {root}; put it there or set `images` to its folder.")
    return path
