"""Settings of a command: YAML files, what they include, `--set` and options, read into a section and refused in words.

Sections are pydantic models; which keys there are is said where a command lives. No model of a network is loaded here.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mixlora.errors import ConfigError


class Section(BaseModel):
    """A group of keys; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid", use_enum_values=True)


S = TypeVar("S", bound=Section)


def read(path: Path, schema: type[Section], record: str) -> dict[str, Any]:
    """The nested values of a YAML file, with the file it includes under them.

    Args:
        path: the file, or a finished directory that holds the configuration it was made with.
        schema: names the keys in messages.
        record: the JSON file in such a directory whose "config" is taken.

    Raises:
        ConfigError: if it is missing, is no YAML or no such directory.
    """
    return _of_record(path, record) if path.is_dir() else _read(path, schema, ())


def overridden(data: Mapping[str, Any], settings: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `key.subkey=value` settings over them, and nested options over both.

    Raises:
        ConfigError: if a setting has another form, or its value is no YAML.
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


def _number(value: Any) -> Any:
    """YAML 1.1 takes 4e-5, which has no dot, for text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
"""A number that may be written 4e-5."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML keeps the last in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The mapping of a node."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path, schema: type[Section], including: tuple[Path, ...]) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(data, dict):
        held = "the file is empty" if data is None else f"it holds a {type(data).__name__}"
        raise ConfigError(
            f"{path}: a configuration is a mapping with the keys {', '.join(schema.model_fields)}, but {held}"
        )
    included = data.pop("include", None)
    if included is None:
        return data
    if path.resolve() in including:
        raise ConfigError(f"{path}: include: {included} leads back to a file that includes it")
    whole = _read(path.parent / str(included), schema, (*including, path.resolve()))
    _merge(whole, data)
    return whole


def _of_record(path: Path, record: str) -> dict[str, Any]:
    try:
        config = json.loads((path / record).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = record.removesuffix(".json")
        raise ConfigError(f"{path} is a directory, but no {kind}; name a YAML file or a {kind}'s directory") from None
    if config is None:
        raise ConfigError(f"{path} was computed from a notebook and holds no configuration to rerun")
    return {key: value for key, value in config.items() if key != "out"}


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r} is not of the form key.subkey=value")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML") from None
    for part in reversed(key.strip().split(".")):
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
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a misspelt key is also missing
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(schema, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if first["type"] == "missing":
        return f"{where!r} is missing"
    if first["loc"][-1:] == ("[key]",):
        return f"{first['loc'][0]}: the name {first['input']!r} is no text; put quotes around it"
    message = "it is empty; give at least one" if first["type"] == "too_short" else first["msg"]
    message = message.removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping) else f" (it is {first['input']!r})"
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
