"""Tasks from files: records to examples, recognised by their content, and the pictures they name."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, get_args

from PIL import ExifTags, Image, ImageOps

from mixlora.data.examples import Example, Role, Turn
from mixlora.errors import DataError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What an image file may be: pixels only, nothing that a decoder would have to run."""
MAX_PIXELS = 8192 * 8192
"""The largest picture that is decoded, judged by its header."""
PLACEHOLDER = "<image>"
"""Where LLaVA's files put the image; taken out of the text, since an example's image has its fixed place."""

_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)} | {"human": "user", "gpt": "assistant"}
_SHAPES = (
    "{messages: [{role, content}], image?}, {prompt, response, image?}, "
    "{conversations: [{from, value}], image?} or {prompt, target, image_path?}"
)
_LISTED_VALUES, _COMPARED_VALUES = 10, 1000


@dataclass(frozen=True)
class TaskSpec:
    """Where the examples of one task are.

    Attributes:
        file: a .jsonl or .json file, a parquet file, or a directory written by `datasets`' `save_to_disk`.
        images: the folder that image names are relative to; the file's own folder if None. No image leaves it.
        where: only records with these values, {field: value}.
        split: the split of a dataset directory that has several.
        fields: the file's own names of `id`, `prompt`, `response` and `image`, as in {prompt: question}.
    """

    file: Path
    images: Path | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any], task: str) -> "TaskSpec":
        """The spec that a configuration's entry describes."""
        allowed = [own.name for own in fields(cls)]
        if unknown := sorted(set(given) - set(allowed)):
            raise DataError(f"Task {task} has the unknown key {unknown[0]!r}; the keys are {', '.join(allowed)}.")
        if not given.get("file"):
            raise DataError(f"Task {task} names no file; give `file: path/to/records.jsonl`.")
        chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        return cls(**chosen | {key: Path(chosen[key]) for key in ("file", "images") if key in chosen})


@dataclass(frozen=True)
class _Record:
    """One record, its place for messages, and its position, which is its id if it has none."""

    values: Mapping[str, Any]
    source: str
    position: int

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise self.error(f"a {type(self.values).__name__} where a record is expected; records are {_SHAPES}.")

    def error(self, text: str) -> DataError:
        """What is wrong with this record."""
        return DataError(f"{self.source}: {text}")


def read_task(spec: TaskSpec | Mapping[str, Any], task: str) -> list[Example]:
    """The examples of one task, in the file's order, each checked; images exist but are not decoded yet.

    Records that share an id get a digest of their content appended to it, so that ids are unique and do not depend on
    the file's order.

    Raises:
        DataError: the file, a record that `where` keeps, or the name of its image cannot be used.
    """
    spec = spec if isinstance(spec, TaskSpec) else TaskSpec.of(spec, task)
    if not spec.file.exists():
        raise DataError(f"Task {task}: {spec.file} does not exist; check the path in `file`.")
    if spec.images is not None and not spec.images.is_dir():
        raise DataError(f"Task {task}: the image folder {spec.images} does not exist; check the path in `images`.")
    records = list(_records(spec))
    if not records:
        raise DataError(f"Task {task}: {spec.file} holds no record; give a file with at least one.")
    root = (spec.images or (spec.file if spec.file.is_dir() else spec.file.parent)).resolve()
    return _with_unique_ids([_example(record, spec, root, task) for record in _matching(records, spec)])


def open_image(example: Example) -> Image.Image:
    """The example's picture, decoded, upright by its EXIF orientation, as RGB.

    Raises:
        DataError: it is no image, is cut off, or has more than `MAX_PIXELS` pixels.
    """
    with _opened(example) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def image_size(example: Example) -> tuple[int, int]:
    """Width and height of the example's picture as `open_image` returns it, from its header alone."""
    with _opened(example) as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (picture.height, picture.width) if turned else picture.size


def _records(spec: TaskSpec) -> Iterator[_Record]:
    if spec.file.is_dir():
        return _dataset_records(spec)
    if spec.split is not None:
        raise DataError(f"{spec.file} has no splits; leave out `split: {spec.split}`.")
    data = spec.file.read_bytes()
    return _parquet_records(spec.file) if data[:4] == b"PAR1" else _json_records(_text(data, spec.file), spec.file)


def _text(data: bytes, file: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file.name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8."
        ) from error


def _json_records(text: str, file: Path) -> Iterator[_Record]:
    """Records of a JSON list, or of a file with one JSON object a line."""
    if text.lstrip().startswith("["):
        for index, values in enumerate(_parse(text, file, 1)):
            yield _Record(values, f"{file.name}[{index}]", index)
        return
    # split("\n"), not splitlines: a JSON string may hold other line separators as they are
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _Record(_parse(line, file, number), f"{file.name}:{number}", number)


def _parse(text: str, file: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{file.name}:{first_line + error.lineno - 1}"
        raise DataError(f"{place}: no JSON at column {error.colno} ({error.msg}); write an object a line.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name}:{first_line}: JSON that cannot be read ({error}); simplify it.") from error


def _parquet_records(file: Path) -> Iterator[_Record]:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(file).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file.name}: a parquet file that cannot be read ({error}); write it again.") from error
    for index, values in enumerate(rows):
        yield _Record(values, f"{file.name}[{index}]", index)


def _dataset_records(spec: TaskSpec) -> Iterator[_Record]:
    """Records of a dataset directory; images stay encoded, as {"bytes", "path"}."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{spec.file} is a directory; to read it, pip install 'task-interference[datasets]'."
        ) from error
    try:
        loaded = datasets.load_from_disk(str(spec.file))
    except (OSError, ValueError) as error:
        remedy = "give such a directory, or a .jsonl, .json or parquet file"
        raise DataError(f"{spec.file} is no directory that datasets' save_to_disk wrote; {remedy}.") from error
    name = spec.file.name
    if isinstance(loaded, datasets.DatasetDict):
        split = spec.split or next(iter(loaded))
        if split not in loaded or (spec.split is None and len(loaded) > 1):
            raise DataError(
                f"{spec.file} has the splits {', '.join(loaded)}; choose one with `split`, not {spec.split}."
            )
        name, loaded = f"{name}/{split}", loaded[split]
    elif spec.split is not None:
        raise DataError(f"{spec.file} has no splits; leave out `split: {spec.split}`.")
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
    for index, values in enumerate(loaded):
        yield _Record(values, f"{name}[{index}]", index)


def _matching(records: Sequence[_Record], spec: TaskSpec) -> list[_Record]:
    """The records with all values of `spec.where`, which a configuration may write as another type ("3" for 3)."""

    def has(record: _Record, name: str) -> bool:
        return name in record.values and str(record.values[name]) == str(spec.where[name])

    kept = [record for record in records if all(has(record, name) for name in spec.where)]
    if kept:
        return kept
    missed = [name for name in spec.where if not any(has(record, name) for record in records)]
    if not missed:
        raise DataError(f"No record of {spec.file} has all of {dict(spec.where)} at once; ask for fewer.")
    name, wanted = missed[0], spec.where[missed[0]]
    values = {str(record.values[name])[:60] for record in records if name in record.values}
    if not values:
        known = ", ".join(map(str, records[0].values))
        raise DataError(f"No record of {spec.file} has the field {name!r} of `where`; the first has {known}.")
    alike = {value: SequenceMatcher(None, value, str(wanted)).ratio() for value in sorted(values)[:_COMPARED_VALUES]}
    near = sorted(values, key=lambda value: (-alike.get(value, 0.0), value))
    more = f" and {len(near) - _LISTED_VALUES} more" if len(near) > _LISTED_VALUES else ""
    listed = ", ".join(near[:_LISTED_VALUES]) + more
    raise DataError(f"No record of {spec.file} has {name} = {wanted!r}; its values are {listed}.")


def _example(record: _Record, spec: TaskSpec, root: Path, task: str) -> Example:
    values = dict(record.values)
    for name, own in spec.fields.items():
        if own not in values:
            raise record.error(f"no field {own!r}, which `fields` names as the {name}; it has {', '.join(values)}.")
        values[name] = values.pop(own)
    record = replace(record, values=values)
    turns, images = _turns(record)
    image = _image(_one_image(record, images), record, root)
    turns = _without_placeholder(turns, image is not None, record)
    _check_turns(turns, record)
    ids = (record.values.get(key) for key in ("id", "unique_id"))
    own_id = next((given for given in ids if given is not None), record.position)
    return Example(str(own_id), task, turns, image, record.source)


def _turns(record: _Record) -> tuple[tuple[Turn, ...], list[Any]]:
    """The record's turns, and the images that parts of its messages hold."""
    values = record.values
    for name, keys in (("messages", ("role", "content")), ("conversations", ("from", "value"))):
        if isinstance(values.get(name), list):
            return _messages(values[name], keys, record)
    answer = next((name for name in ("response", "target") if name in values), None)
    if "prompt" in values and answer is not None:
        prompt = Turn("user", _checked_text(values["prompt"], "prompt", record))
        return (prompt, Turn("assistant", _checked_text(values[answer], answer, record))), []
    raise record.error(
        f"a record of unknown shape, with the keys {', '.join(map(str, values)) or 'none'}; "
        f"understood are {_SHAPES}; other names of fields are told by `fields`."
    )


def _messages(messages: Sequence[Any], keys: tuple[str, str], record: _Record) -> tuple[tuple[Turn, ...], list[Any]]:
    role_key, text_key = keys
    turns: list[Turn] = []
    images: list[Any] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {role_key, text_key} <= set(message):
            raise record.error(f"message {number} is no {{{role_key}, {text_key}}}; write it so.")
        if (role := _ROLES.get(str(message[role_key]))) is None:
            raise record.error(f"message {number} has the role {message[role_key]!r}; roles are {', '.join(_ROLES)}.")
        content = message[text_key]
        if isinstance(content, list):
            content, found = _parts(content, number, record)
            if found and (role != "user" or any(turn.role == "user" for turn in turns)):
                raise record.error(f"message {number} holds an image; its place is the first user message.")
            images += found
        turns.append(Turn(role, _checked_text(content, f"message {number}", record)))
    return tuple(turns), images


def _parts(content: Sequence[Any], number: int, record: _Record) -> tuple[str, list[Any]]:
    """The text of a message written as parts, and its images: each a value, or True where the record itself has it."""
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(_checked_text(part.get("text"), f"message {number}", record))
        elif kind == "image":
            images.append(part.get("image") or part.get("path") or True)
        else:
            known = '{"type": "text", "text": ...} and {"type": "image"}'
            raise record.error(f"message {number} has a part {str(part)[:60]!r}; parts are {known}.")
    return "".join(texts), images


def _checked_text(value: Any, what: str, record: _Record) -> str:
    if not isinstance(value, str):
        raise record.error(f"the text of {what} is {value!r:.60}, a {type(value).__name__}; write it as a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise record.error(f"the text of {what} holds {value[error.start]!a}, half a character; remove it.") from error
    return value


def _check_turns(turns: Sequence[Turn], record: _Record) -> None:
    if next((turn.role for turn in turns if turn.role != "system"), None) != "user":
        raise record.error("the conversation does not begin with a user turn; add the question.")
    if turns[-1].role != "assistant":
        raise record.error(f"the conversation ends with a {turns[-1].role} turn; end it with the assistant's answer.")
    if any(turn.role == "assistant" and not turn.text.strip() for turn in turns):
        raise record.error("an answer is empty, so there is nothing to learn; fill it or drop the record.")


def _without_placeholder(turns: tuple[Turn, ...], has_image: bool, record: _Record) -> tuple[Turn, ...]:
    """The turns without LLaVA's placeholder in the first user turn."""
    first = next((turn for turn in turns if turn.role == "user"), None)
    if first is None or PLACEHOLDER not in first.text:
        return turns
    if not has_image:
        if "conversations" not in record.values:
            return turns
        raise record.error(f"the text has {PLACEHOLDER}, but the record names no image; add `image` or remove it.")
    stripped = Turn("user", first.text.replace(PLACEHOLDER, "").strip())
    return tuple(stripped if turn is first else turn for turn in turns)


def _one_image(record: _Record, of_parts: list[Any]) -> Any:
    """The only image the record names: a path, a picture, encoded bytes, or None."""
    several = record.values.get("images")
    candidates = [record.values.get("image"), record.values.get("image_path"), *of_parts]
    candidates += several if isinstance(several, list) else []
    named = [value for value in candidates if value is not None and value != "" and value is not True]
    if max(len(named), len(of_parts)) > 1:
        raise record.error(f"the record has {max(len(named), len(of_parts))} images; an example has one at most.")
    if of_parts and not named:
        raise record.error("a message holds an image, but the record names none; add `image`.")
    return named[0] if named else None


def _image(value: Any, record: _Record, root: Path) -> Path | Image.Image | None:
    if isinstance(value, Mapping) and value.get("bytes"):
        try:
            return Image.open(io.BytesIO(value["bytes"]), formats=IMAGE_FORMATS)
        except Exception as error:  # as in open_image
            raise record.error(f"an embedded image that cannot be opened ({error}); drop it.") from error
    if isinstance(value, Mapping):
        value = value.get("path")
    if value is None or isinstance(value, Image.Image):
        return value
    if not isinstance(value, str):
        raise record.error(f"the image is a {type(value).__name__}; give the name of a file.")
    return _inside(value, record, root)


def _inside(name: str, record: _Record, root: Path) -> Path:
    """The path of an image file that is there, below `root` even when links are followed."""
    refusal = f"{record.source}: the image {name!r:.200} lies outside the image folder {root}; "
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(refusal + "name it relative to that folder (`images`).")
    path = root / name
    try:
        found, real = path.is_file(), path.resolve()
    except (OSError, ValueError, RuntimeError):  # a name no file can have: too long, with a NUL, a loop of links
        found, real = False, path
    if not real.is_relative_to(root):
        raise DataError(refusal + "replace the link by a copy.")
    if not found:
        raise record.error(f"the image {name!r:.200} is not in {root}; put it there or set `images` to its folder.")
    return path


def _with_unique_ids(examples: list[Example]) -> list[Example]:
    """The examples; those that share an id are told apart by their content, and copies by counting them."""
    often = Counter(example.id for example in examples)
    taken: Counter[str] = Counter()
    unique = []
    for example in examples:
        name = example.id
        if often[name] > 1:
            image = example.image.name if isinstance(example.image, Path) else ""
            content = json.dumps([image, *((turn.role, turn.text) for turn in example.turns)])
            name = f"{name}~{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        taken[name] += 1
        unique.append(replace(example, id=f"{name}~{taken[name]}" if taken[name] > 1 else name))
    return unique


@contextmanager
def _opened(example: Example) -> Iterator[Image.Image]:
    """The example's picture with its header read and its size judged; what goes wrong with it is a DataError."""
    given = example.image
    try:
        with ExitStack() as files:
            if isinstance(given, Path):
                given = files.enter_context(Image.open(given, formats=IMAGE_FORMATS))
            if not isinstance(given, Image.Image):
                raise TypeError("it is no picture")
            if given.width * given.height > MAX_PIXELS:
                raise ValueError(f"{given.width} x {given.height} pixels are more than the limit of {MAX_PIXELS}")
            yield given
    except Exception as error:  # Pillow's decoders raise errors of every kind on broken input
        name = str(example.image) if isinstance(example.image, Path) else "in the record"
        raise DataError(f"{example.source}: the image {name} cannot be used ({error}); replace or drop it.") from error
