"""Settings of a command: YAML files, the files they include, `--set` and options, validated by a section.

Sections are pydantic models. Not here: which keys there are (`sections`, and each command's `config`).
"""

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from mixlora.common.errors import ConfigError, type_of
from mixlora.common.files import DEEPEST, is_folder, read_json, read_text

LARGEST = 2**20
"""The largest configuration file, in bytes."""
MOST_VALUES = 100_000
"""The most values in it, each counted as often as aliases repeat it."""
MOST_INCLUDED = 16
"""The longest chain of files that include each other."""
PLAINER = {
    "dict_type": "it must be a section of keys and values",
    "model_type": "it must be a section of keys and values",
    "too_short": "it is empty; give at least one",
}
"""What is said of some kinds of problems in place of pydantic's words."""
_LONGEST = 1024
"""Characters of the path of a file that is included."""


Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path or a hub id; a leading ~ is the home directory."""


class Section(BaseModel):
    """A group of keys; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid", use_enum_values=True)


S = TypeVar("S", bound=Section)


def read(path: Path, schema: type[Section], record: str) -> dict[str, Any]:
    """The nested values of a YAML file, with the file it includes under them.

    Args:
        path: the file, or a finished directory that holds its configuration; `model.trust_remote_code` is dropped from
            the latter.
        schema: the section whose keys messages list.
        record: the JSON file in such a directory that has the configuration under "config".

    Raises:
        ConfigError: if it is missing, is not YAML or no such directory.
    """
    return _of_record(path, record) if is_folder(path) else _read(path, schema, ())


def without_trust(config: Mapping[str, Any]) -> dict[str, Any]:
    """A directory's stored configuration without `trust_remote_code`, which only the user may set."""
    found = dict(config)
    if isinstance(model := found.get("model"), Mapping):
        found["model"] = {key: value for key, value in model.items() if key != "trust_remote_code"}
    return found


def overridden(data: Mapping[str, Any], settings: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `key.subkey=value` settings over them, and nested options over both.

    Raises:
        ConfigError: if a setting has another form, or its value is not YAML.
    """
    whole: dict[str, Any] = {}
    for part in (data, *map(_setting, settings), options):
        _merge(whole, part)
    return whole


def build(schema: type[S], data: Mapping[str, Any], place: str) -> S:
    """The section that nested values describe; `place` is named in errors.

    Raises:
        ConfigError: if a key is unknown or missing, or a value cannot be used.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{place}: {_sentence(error, schema)}") from None


def line(values: Mapping[str, Any]) -> str:
    """Values as one line of YAML, which can stand in a configuration whatever their texts hold."""
    text: str = yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=math.inf)
    return text.strip()


def text(values: Mapping[str, Any]) -> str:
    """Nested values as a YAML file."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def leaves(nested: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is not a mapping, with its dotted key, as ("generation.num_beams", 1)."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value


def _number(value: Any) -> Any:
    """Text as a number: YAML 1.1 reads 4e-5, which has no dot, as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
"""A number that may be written as 4e-5."""


class _Loader(yaml.SafeLoader):
    """Loads plain values within bounds; refuses a repeated key, of which YAML silently keeps the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}  # a node's values and levels, aliases expanded

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; refused if it is too large or too deep, or contains itself."""
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > DEEPEST:
            raise _refusal(f"it is nested deeper than {DEEPEST} levels", mark)
        repeated = self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if not repeated:
            self._extents[node] = self._extent(node, mark)
        elif node not in self._extents:
            raise _refusal("an alias is inside the part that it repeats", mark)
        return node

    def _extent(self, node: Any, mark: Any) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        values = 1 + sum(self._extents[part][0] for part in inner)
        levels = 1 + max((self._extents[part][1] for part in inner), default=0)
        if values > MOST_VALUES or levels > DEEPEST:
            raise _refusal(f"with its aliases written out it has over {MOST_VALUES} values or {DEEPEST} levels", mark)
        return values, levels

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value of a node; for some invalid values PyYAML raises Python's own errors."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode("utf-8")
            return value
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            problem = f"{str(node.value)!r:.60} cannot be read as {str(node.tag).rpartition(':')[2]}"
            raise _refusal(problem, node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The mapping of a node."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                if key.value in seen:
                    raise _refusal(f"the key {key.value!r} appears twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)


def _read(path: Path, schema: type[Section], including: tuple[Path, ...]) -> dict[str, Any]:
    try:
        data = yaml.load(read_text(path, LARGEST), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({_reason(error)})") from None
    if not isinstance(data, dict):
        held = "the file is empty" if data is None else f"it contains {type_of(data)}"
        raise ConfigError(
            f"{path}: a configuration is a mapping with the keys {', '.join(schema.model_fields)}, but {held}"
        )
    included = data.pop("include", None)
    if included is None:
        return data
    whole = _read(_included(included, path, including), schema, (*including, path.resolve()))
    _merge(whole, data)
    return whole


def _included(name: Any, path: Path, including: tuple[Path, ...]) -> Path:
    """The file that one includes."""
    if not isinstance(name, str):
        raise ConfigError(f"{path}: include: {name!r:.60} is {type_of(name)}; give the name of one file")
    if len(name) > _LONGEST:
        raise ConfigError(f"{path}: include: {name!r:.60} has {len(name)} characters; give a path of up to {_LONGEST}")
    if path.resolve() in including:
        raise ConfigError(f"{path}: include: {name} leads back to a file that includes it")
    if len(including) >= MOST_INCLUDED:
        raise ConfigError(f"{path}: include: {name} is more than {MOST_INCLUDED} files deep; include fewer")
    return path.parent / name


def _reason(error: yaml.YAMLError) -> str:
    """PyYAML's description of the problem."""
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)


def _of_record(path: Path, record: str) -> dict[str, Any]:
    remedy = f"name a YAML file or a {record.removesuffix('.json')}'s directory"
    try:
        found = read_json(path / record)
    except FileNotFoundError:
        raise ConfigError(f"{path} is a directory, but has no {record}; {remedy}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path / record} cannot be read ({error}); {remedy}") from None
    try:
        config = found["config"]
        kept = None if config is None else {k: value for k, value in without_trust(config).items() if k != "out"}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"{path / record} holds no configuration; {remedy}") from None
    if kept is None:
        raise ConfigError(f"{path} was computed from a notebook and has no configuration to rerun")
    return kept


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r:.200} is not of the form key.subkey=value")
    try:
        nested: Any = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r:.200}: the value is not valid YAML ({_reason(error)})") from None
    parts = key.strip().split(".")
    if len(parts) > DEEPEST:
        raise ConfigError(f"--set {text!r:.200}: the key has more than {DEEPEST} parts")
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def _merge(into: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _sentence(error: ValidationError, schema: type[Section]) -> str:
    """The first problem as one sentence: where, what, remedy."""
    first = min(
        error.errors(), key=lambda found: found["type"] != "extra_forbidden"
    )  # a misspelt required key is also reported as missing
    where = f"{'.'.join(str(part) for part in first['loc']):.300}"
    if first["type"] == "extra_forbidden":
        known = _keys_at(schema, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if first["type"] == "missing":
        return f"{where!r} is missing"
    if first["loc"][-1:] == ("[key]",):
        return f"{first['loc'][0]}: the name {first['input']!r:.60} is not text; put quotes around it"
    message = PLAINER.get(first["type"], first["msg"]).removeprefix("Value error, ")
    value = "null" if first["input"] is None else f"{first['input']!r:.200}"
    given = "" if isinstance(first["input"], Mapping) else f" (it is {value})"
    return f"{where}: {message}{given}" if where else message


def _keys_at(schema: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys known at a place in the configuration."""
    section = schema
    for part in location:
        field = section.model_fields.get(str(part))
        section = (_section_in(field.annotation) if field else None) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds: itself, optional, or in a mapping."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner))), None)
