"""Pages of the reference that come from the code: every command with its options, every key of a configuration."""

import enum
import re
import typing
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from interference.cli import advising, drawing, predicting  # noqa: F401  their commands register themselves
from interference.cli import commands as of_interference
from interference.config import AnalysisConfig
from mixlora import cli as of_mixlora
from mixlora.evaluation.config import EvaluateConfig
from mixlora.training.config import TrainConfig

COMMANDS = {"interference": of_interference.app, "mixlora": of_mixlora.app}
CONFIGURATIONS = {
    "interference-config": ("Keys of `interference compute`", AnalysisConfig),
    "train-config": ("Keys of `mixlora train`", TrainConfig),
    "evaluate-config": ("Keys of `mixlora evaluate`", EvaluateConfig),
}
_ATTRIBUTE = re.compile(r"^(\w+):\s+(.*)$")


def version() -> str:
    """The installed version of this project."""
    return installed("task-interference")


def write(folder: Path) -> None:
    """Write all generated pages, but for those that are the same already: Sphinx then need not read them again."""
    pages = {f"cli-{name}.md": "\n".join(command_page(name, app)) for name, app in COMMANDS.items()}
    for name, (title, model) in CONFIGURATIONS.items():
        pages[f"{name}.md"] = "\n".join([f"# {title}", "", *sections(model)])
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text + "\n":
            path.write_text(text + "\n", encoding="utf-8")


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings have code in single backticks and mathematics with bars and stars; make that reStructuredText."""
    for k, line in enumerate(lines):
        parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
        lines[k] = "".join(_code(part) if part.startswith("`") else _escaped(part) for part in parts)


def _code(text: str) -> str:
    return f"``{text.strip('`')}``"


def _escaped(text: str) -> str:
    return re.sub(r"(?<!\\)([|*]|_(?=\W|$))", r"\\\1", text)


# --- commands ---


def command_page(name: str, app: Any) -> Iterator[str]:
    """The lines of a page: a section for each command, with its usage, arguments and options."""
    group: Any = typer.main.get_command(app)
    yield from [f"# The command `{name}`", "", _plain(group.help), ""]
    yield from ["| command | what it does |", "|---|---|"]
    for each, command in group.commands.items():
        yield f"| [`{name} {each}`](#{name}-{each}) | {_cell(_first(command.help))} |"
    for each, command in group.commands.items():
        yield from _command(f"{name} {each}", command)


def _command(path: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [
        each for each in command.params if each.param_type_name == "option" and not getattr(each, "hidden", False)
    ]
    usage = " ".join([path, *(_usage(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    yield from [
        "",
        f"({path.replace(' ', '-')})=",
        f"## `{path}`",
        "",
        _plain(command.help),
        "",
        "```text",
        usage,
        "```",
        "",
    ]
    if arguments:
        yield from ["| argument | |", "|---|---|"]
        yield from (f"| `{each.metavar or each.name.upper()}` | {_cell(each.help)} |" for each in arguments)
        yield ""
    if options:
        yield from ["| option | default | |", "|---|---|---|"]
        yield from (f"| {_names(each)} | {_default(each)} | {_cell(each.help)} |" for each in options)


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    off = f" / `{option.secondary_opts[0]}`" if option.secondary_opts else ""
    kinds = _members(option.type_descriptor.annotation)
    return ", ".join(f"`{name}`" for name in option.opts) + off + (f"<br>{_choices(kinds)}" if kinds else "")


def _choices(kinds: list[Any]) -> str:
    return ", ".join(f"`{kind}`" for kind in kinds)


def _default(option: Any) -> str:
    shown = getattr(option, "show_default", None)
    if isinstance(shown, str):
        return _cell(shown)
    if option.required:
        return "required"
    return "" if callable(option.default) else _value(option.default)


def _value(value: Any) -> str:
    """A default as it is written in a configuration or on the command line; nothing for None and empty lists."""
    if value is None or value in ([], ()):
        return ""
    if isinstance(value, list | tuple):
        return "`[" + ", ".join(str(getattr(each, "value", each)) for each in value) + "]`"
    return f"`{str(value).lower() if isinstance(value, bool) else getattr(value, 'value', value)}`"


def _first(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0]


def _plain(text: str | None) -> str:
    """Help text as Markdown: rich's markup and typer's paragraph marks out."""
    return re.sub(r"\[/?(?:bold|dim|italic|cyan|green|red)\]", "", (text or "").replace("\b", "")).strip()


def _cell(text: str | None) -> str:
    return " ".join(_plain(text).split()).replace("|", r"\|")


# --- configurations ---


def sections(model: type[BaseModel], path: str = "", title: str = "") -> Iterator[str]:
    """The lines of a table of a model's keys, then those of the sections in it."""
    told = attributes(model)
    if title:
        yield from ["", f"## `{title}`", ""]
    yield from [_summary(model), "", "| key | default | |", "|---|---|---|"]
    inner = []
    for name, field in model.model_fields.items():
        deeper = _section(field.annotation)
        key = f"{path}{name}"
        if deeper:
            shown = f"{key}.NAME" if _is_mapping(field.annotation) else key
            inner.append((deeper, f"{shown}.", shown))
        said = told.get(name, f"see [`{inner[-1][2]}`](#{_anchor(inner[-1][2])})" if deeper else "")
        yield f"| `{name}` | {_field_default(field)} | {_kind(field.annotation)}{_cell(said)} |"
    for deeper, below, shown in inner:
        yield from sections(deeper, below, shown)


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """{key: what the docstring of the class, or of a parent, says of it}."""
    told: dict[str, str] = {}
    for each in reversed(model.__mro__):
        told |= _attributes(each.__doc__ or "")
    return told


def _attributes(text: str) -> dict[str, str]:
    _, _, listed = text.partition("Attributes:")
    found: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        started = _ATTRIBUTE.match(line.strip()) if len(line) - len(line.lstrip()) <= 8 else None
        if started:
            name, found[started[1]] = started[1], started[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("Attributes:")[0].split())


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation holds, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, typing.get_args(annotation))), None)


def _is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def _kind(annotation: Any) -> str:
    """Allowed values where they are listed, else nothing."""
    listed = _members(annotation)
    return f"{_choices(listed)}: " if listed else ""


def _members(annotation: Any) -> list[Any]:
    """The values that an annotation of enums and literals allows, without repetition."""
    listed: list[Any] = []
    for each in (annotation, *typing.get_args(annotation)):
        if isinstance(each, type) and issubclass(each, enum.Enum):
            listed += [member.value for member in each]
        elif typing.get_origin(each) is typing.Literal:
            listed += typing.get_args(each)
    return list(dict.fromkeys(listed))


def _field_default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else None
    if field.default_factory is not None:
        value = None if _section(field.annotation) else field.default_factory()
    return _value(value)


def _anchor(text: str) -> str:
    return re.sub(r"[^\w-]", "", text.replace(" ", "-")).lower()
