"""One record of a data file to an example; its shape is recognised by its keys.

Not here: reading files (`files`) and tasks (`tasks`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from mixlora.common.errors import DataError
from mixlora.data.examples import Example, Role, Turn
from mixlora.data.images import encoded_image

PLACEHOLDER = "<image>"
"""The image's place in the text of LLaVA's files; removed, because an example's image has a fixed place."""

_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)} | {"human": "user", "gpt": "assistant"}
_SHAPES = (
    "{messages: [{role, content}], image?}, {prompt, response, image?}, "
    "{conversations: [{from, value}], image?} or {prompt, target, image_path?}"
)


@dataclass(frozen=True)
class Record:
    """One record, its place for messages, and its position, which is the id of a record without one."""

    values: Mapping[str, Any]
    source: str
    position: int

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise self.error(f"a {type(self.values).__name__} where a record is expected; records are {_SHAPES}.")

    @property
    def keys(self) -> str:
        """The record's keys, cut to what fits a message."""
        return f"{', '.join(map(str, self.values)) or 'none':.300}"

    def error(self, text: str) -> DataError:
        """The error that names this record and what is wrong with it."""
        return DataError(f"{self.source}: {text}")


def read_example(record: Record, fields: Mapping[str, str], root: Path, task: str, outside: bool = False) -> Example:
    """The example of a record; its image exists below `root`, but is not decoded yet.

    Args:
        record: the record of a file.
        fields: the file's own names of fields, {name: own name}.
        root: the folder that image names are relative to, resolved.
        task: the example's task.
        outside: allow an image outside `root`.

    Raises:
        DataError: the record is of no known shape, or something in it cannot be used.
    """
    try:
        return _example(record, fields, root, task, outside)
    except RecursionError:
        raise record.error("something in it is nested too deeply; simplify it.") from None


def _example(record: Record, fields: Mapping[str, str], root: Path, task: str, outside: bool) -> Example:
    values = dict(record.values)
    for name, own in fields.items():
        if own not in values:
            raise record.error(f"no field {own!r}, which `fields` names as the {name}; it has {record.keys}.")
        values[name] = values.pop(own)
    record = replace(record, values=values)
    turns, images, references = _content(record)
    image = _image(_one_image(record, images), record, root, outside)
    turns = _without_placeholder(turns, image is not None, record)
    _check_turns(turns, record)
    ids = (record.values.get(key) for key in ("id", "unique_id"))
    own_id = next((given for given in ids if given is not None), record.position)
    return Example(checked_text(str(own_id), "id", record), task, turns, image, record.source, references)


def _content(record: Record) -> tuple[tuple[Turn, ...], list[Any], tuple[str, ...]]:
    """The record's turns, the images that parts of its messages hold, and its accepted answers."""
    values = record.values
    for name, keys in (("messages", ("role", "content")), ("conversations", ("from", "value"))):
        if isinstance(values.get(name), list):
            return *_messages(values[name], keys, record), ()
    references = _references(record) if "prompt" in values else ()
    answer = next((name for name in ("response", "target") if name in values), "")
    if "prompt" not in values or not (answer or references):
        raise record.error(
            f"a record of unknown shape, with the keys {record.keys}; "
            f"understood are {_SHAPES}; other names of fields are told by `fields`."
        )
    prompt = Turn("user", checked_text(values["prompt"], "prompt", record))
    given = values.get(answer)
    if references and (given is None or isinstance(given, list)):
        given = _most_frequent(references)
    return (prompt, Turn("assistant", checked_text(given, answer, record))), [], references


def _references(record: Record) -> tuple[str, ...]:
    """The accepted answers that a record with a prompt lists, repetitions included; () if it lists none.

    They are the answer itself if it is a list, or else the field `references`, or `answers` if there is no `response`.
    """
    values = record.values
    lists = [name for name in ("response", "target") if isinstance(values.get(name), list)]
    others = ["references"] + ["answers"] * (values.get("response") is None)
    name = next((name for name in [*lists, *others] if values.get(name) is not None), None)
    if name is None:
        return ()
    given = values[name]
    if not isinstance(given, list) or not given:
        raise record.error(f"{name} is {given!r:.60}; write a list of at least one answer.")
    answers = [item.get("answer") if isinstance(item, Mapping) else item for item in given]
    return tuple(checked_text(answer, f"answer {at} of {name}", record) for at, answer in enumerate(answers, 1))


def _most_frequent(answers: Sequence[str]) -> str:
    """The most frequent answer, the first of them on ties; a blank one only if all are blank."""
    return Counter([answer for answer in answers if answer.strip()] or answers).most_common(1)[0][0]


def _messages(messages: Sequence[Any], keys: tuple[str, str], record: Record) -> tuple[tuple[Turn, ...], list[Any]]:
    role_key, text_key = keys
    turns: list[Turn] = []
    images: list[Any] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {role_key, text_key} <= set(message):
            raise record.error(f"message {number} is no {{{role_key}, {text_key}}}; write it so.")
        if (role := _ROLES.get(str(message[role_key]))) is None:
            given = f"{message[role_key]!r:.60}"
            raise record.error(f"message {number} has the role {given}; roles are {', '.join(_ROLES)}.")
        content = message[text_key]
        if isinstance(content, list):
            content, found = _parts(content, number, record)
            if found and (role != "user" or any(turn.role == "user" for turn in turns)):
                raise record.error(f"message {number} holds an image; its place is the first user message.")
            images += found
        turns.append(Turn(role, checked_text(content, f"message {number}", record)))
    return tuple(turns), images


def _parts(content: Sequence[Any], number: int, record: Record) -> tuple[str, list[Any]]:
    """The text of a message written as parts, and its images: each a value, or True if the record itself names it."""
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(checked_text(part.get("text"), f"message {number}", record))
        elif kind == "image":
            images.append(part.get("image") or part.get("path") or True)
        else:
            known = '{"type": "text", "text": ...} and {"type": "image"}'
            raise record.error(f"message {number} has a part {str(part)[:60]!r}; parts are {known}.")
    return "".join(texts), images


def checked_text(value: Any, what: str, record: Record) -> str:
    """The value, which must be text that can be written to a file.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, str):
        raise record.error(f"the text of {what} is {value!r:.60}, a {type(value).__name__}; write it as a string.")
    if half := half_character(value):
        raise record.error(f"the text of {what} holds {half!a}, half a character; remove it.")
    return value


def half_character(text: str) -> str:
    """The first lone surrogate in a text, which UTF-8 cannot encode; "" if there is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""


def _check_turns(turns: Sequence[Turn], record: Record) -> None:
    if next((turn.role for turn in turns if turn.role != "system"), None) != "user":
        raise record.error("the conversation does not begin with a user turn; add the question.")
    if turns[-1].role != "assistant":
        raise record.error(f"the conversation ends with a {turns[-1].role} turn; end it with the assistant's answer.")
    if any(turn.role == "assistant" and not turn.text.strip() for turn in turns):
        raise record.error("an answer is empty, so there is nothing to learn; fill it or drop the record.")


def _without_placeholder(turns: tuple[Turn, ...], has_image: bool, record: Record) -> tuple[Turn, ...]:
    """The turns without LLaVA's placeholder in the first user turn."""
    first = next((turn for turn in turns if turn.role == "user"), None)
    if first is None or PLACEHOLDER not in first.text:
        return turns
    if not has_image:
        if "conversations" not in record.values:
            return turns
        raise record.error(f"the text has {PLACEHOLDER}, but the record names no image; add `image` or remove it.")
    if (count := sum(turn.text.count(PLACEHOLDER) for turn in turns)) > 1:
        raise record.error(f"the text has {PLACEHOLDER} {count} times; an example has one image at most.")
    stripped = Turn("user", first.text.replace(PLACEHOLDER, "").strip())
    return tuple(stripped if turn is first else turn for turn in turns)


def _one_image(record: Record, of_parts: list[Any]) -> Any:
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


def _image(value: Any, record: Record, root: Path, outside: bool) -> Path | Image.Image | None:
    if isinstance(value, Mapping) and value.get("bytes"):
        try:
            return encoded_image(value["bytes"])
        except Exception as error:  # Pillow raises errors of every kind on broken input
            raise record.error(f"an embedded image that cannot be opened ({error}); drop it.") from error
    if isinstance(value, Mapping):
        value = value.get("path")
    if value is None or isinstance(value, Image.Image):
        return value
    if not isinstance(value, str):
        raise record.error(f"the image is a {type(value).__name__}; give the name of a file.")
    return _file(checked_text(value, "image", record), record, root, outside)


def _file(name: str, record: Record, root: Path, outside: bool) -> Path:
    """The path of an existing image file; unless `outside`, it is below `root` even after links are resolved."""
    refusal = f"{record.source}: the image {name!r:.200} lies outside the image folder {root}; "
    if not outside and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise DataError(refusal + "name it relative to that folder (`images`), or allow this with `outside: true`.")
    path = root / name
    try:
        found, real = path.is_file(), path.resolve()
    except (OSError, ValueError, RuntimeError):  # an impossible name: too long, with a NUL; or a loop of links
        found, real = False, path
    if not outside and not real.is_relative_to(root):
        raise DataError(refusal + "replace the link by a copy, or allow this with `outside: true`.")
    if not found:
        raise record.error(f"the image {name!r:.200} is not in {root}; put it there or set `images` to its folder.")
    return path
