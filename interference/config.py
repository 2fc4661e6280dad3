"""AnalysisConfig: what `interference compute` is asked to do, from YAML, options or both. No model is loaded here."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from interference.blocks import Component, Granularity
from interference.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_enum_values=True)


class ModelConfig(_Section):
    """Which checkpoint is measured.

    Attributes:
        base: path or hub id of the base model; "mini" is the small LLaVA that ships with this package.
        adapter: path or hub id of a PEFT adapter for it.
        dtype: of the base's weights; "auto" keeps the checkpoint's own.
        device: "auto" is a GPU where there is one.
        attention: attention implementation of transformers.
        chat_template: a Jinja template in place of the model's own.
        trust_remote_code: run code that a hub repository brings.
    """

    base: str
    adapter: str
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    device: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    chat_template: str | None = None
    trust_remote_code: bool = False


class TaskConfig(_Section):
    """Where a task's examples come from: a file, or the mini suite.

    Attributes:
        file: JSONL, LLaVA JSON, parquet or a Hugging Face dataset directory.
        images: the folder that image names are relative to; None for the file's own.
        where: only records with these values.
        split: of a dataset directory that has several.
        fields: the file's own names of id, prompt, response and image.
        mini: "train" or "heldout": the task of this name of the mini suite.
    """

    file: str | None = None
    images: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)
    split: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    mini: Literal["train", "heldout"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "TaskConfig":
        if (self.file is None) == (self.mini is None):
            raise ValueError("give either file: PATH or mini: heldout")
        return self


class ProbeConfig(_Section):
    """What is measured, and how.

    Attributes:
        samples: examples drawn from each task.
        unit_size: examples whose mean gradient is one unit.
        token_mean: weigh the examples of a unit by their supervised tokens, as a Trainer's batch does.
        layers: transformer blocks, from 0; None for all.
        modules: module names or "attention", "mlp"; None for all.
        components: "language", "vision", "projector".
        seed: of the sampling and the bootstrap.
        batch_size: examples in one forward pass.
        max_length: tokens kept of an example; None keeps all.
        granularity: "module", "group" or "layer": how far blocks are summed before they are stored.
        weight_space: also store the Gram of the weight-space view.
        routers: also measure MixLoRA's routers, as blocks of their own.
        memory_budget: memory for gradients, in bytes or as "2GiB".
    """

    samples: int = Field(100, ge=2)
    unit_size: int = Field(1, ge=1)
    token_mean: bool = False
    layers: list[int] | None = None
    modules: list[str] | None = None
    components: list[Component] = [Component.LANGUAGE]
    seed: int = 0
    batch_size: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=1)
    granularity: Granularity = Granularity.MODULE
    weight_space: bool = False
    routers: bool = False
    memory_budget: int = 2**30

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("layers", "modules", "components")
    @classmethod
    def _not_empty(cls, value: list[Any] | None) -> list[Any] | None:
        if value == []:
            raise ValueError("is an empty list; leave it out to take all")
        return value


class AnalysisConfig(_Section):
    """Everything `compute` needs; `out` is the run's directory."""

    model: ModelConfig
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    probe: ProbeConfig = Field(default_factory=lambda: ProbeConfig.model_validate({}))
    out: str | None = None


def load(
    path: Path | None = None, settings: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> AnalysisConfig:
    """The configuration of a YAML file (or of a run), with `--set` settings and command-line options over it.

    Args:
        path: a YAML file, or a run's directory, whose own configuration is taken; None for options alone.
        settings: "key.subkey=value", the value in YAML.
        options: nested values that win over everything else.

    Raises:
        ConfigError: if the file is missing, is no YAML, or has a key or value that cannot be used.
    """
    data: dict[str, Any] = _read(path) if path else {}
    for setting in settings:
        _merge(data, _setting(setting))
    _merge(data, dict(options or {}))
    return build(data, str(path) if path else "the options")


def build(data: Mapping[str, Any], place: str) -> AnalysisConfig:
    """The configuration that nested values describe; `place` is named in errors."""
    try:
        return AnalysisConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{place}: {_sentence(error)}") from None


def parse_bytes(text: str) -> int:
    """The number of bytes in "2GiB", "500 MB" or "1000"; decimal and binary units."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]?i?b?)\s*", text.lower())
    if not match or match[2] not in _UNITS:
        raise ConfigError(f"{text!r} is no amount of memory; write a number of bytes or one like 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _read(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.is_dir():
        return _of_run(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: a configuration is a mapping with the keys {', '.join(AnalysisConfig.model_fields)}"
        )
    included = data.pop("include", None)
    if included is None:
        return data
    if path.resolve() in including:
        raise ConfigError(f"{path}: include: {included} leads back to a file that includes it")
    whole = _read(path.parent / str(included), (*including, path.resolve()))
    _merge(whole, data)
    return whole


def _of_run(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is a directory, but no run; name a YAML file or a run's directory") from None
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
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _sentence(error: ValidationError) -> str:
    """The first problem as one sentence: where, what, remedy."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a misspelt key is also missing
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if first["type"] == "missing":
        return f"{where!r} is missing"
    if first["loc"][-1:] == ("[key]",):
        return f"{first['loc'][0]}: the name {first['input']!r} is no text; put quotes around it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (it is {first['input']!r})" if where else message


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """The keys known at a place in the configuration."""
    section: type[BaseModel] = AnalysisConfig
    sections: dict[str, type[BaseModel]] = {"model": ModelConfig, "probe": ProbeConfig}
    if location and location[0] in sections:
        section = sections[str(location[0])]
    elif location and location[0] == "tasks":
        section = TaskConfig
    return list(section.model_fields)
