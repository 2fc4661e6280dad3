"""AnalysisConfig: what `interference compute` is to do, from YAML, options or both. No model is loaded here."""

import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from interference.blocks import Component, Granularity, Step
from interference.config.steps import SEEDS, LookaheadConfig, TrialConfig, ValidateConfig
from interference.errors import ConfigError
from mixlora.common import settings as yaml_settings
from mixlora.common.sections import BaseSection, TaskSection, resolved
from mixlora.common.settings import Place, Section
from mixlora.data.groups import IMAGE, NONE

LEAST_SUMS = 16
"""The smallest number of random sums in a sketch."""
MEMORY_BUDGET = 2**30
"""Bytes that gradients may take in memory."""
SKETCHED = "sketch keeps sums of entries, which AdamW's step divides one by one; leave out sketch, or step: adam"
"""Why no sketches are kept of AdamW's step."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


OF_TRAINING = ("lookahead", "validation", "trial", "processes")
"""Keys of a configuration that `compute` does not read."""


class ModelConfig(BaseSection):
    """The checkpoint that is measured: the base's keys, and an adapter for it.

    Attributes:
        adapter: path or hub id of a PEFT adapter, a LoRA or a MixLoRA.
    """

    adapter: Place


class TaskConfig(TaskSection):
    """A task that is measured: where its examples come from, and which of them are not independent.

    Attributes:
        group: what examples that are not independent share: "image" (a picture, by its content), a key of their
            records, or "none". One value of a key of one name is one group in all tasks, as one picture is.
        paired: as `paired` of `probe`, of this task alone; None for what that says.
    """

    group: str = Field(IMAGE, min_length=1)
    paired: bool | None = None

    @model_validator(mode="after")
    def _group_of_file(self) -> "TaskConfig":
        if self.mini is not None and self.group not in (IMAGE, NONE):
            raise ValueError(f"group is {self.group!r}, but mini has no records; write image or none")
        return self


class ProbeConfig(Section):
    """What is measured, and how.

    Attributes:
        samples: examples drawn from each task.
        unit_size: examples whose mean gradient is one unit.
        token_mean: weigh the examples of a unit by their supervised tokens, as a Trainer's batch does.
        layers: transformer blocks, from 0; None for all.
        modules: module names or "attention", "mlp"; None for all.
        components: "language", "vision", "projector".
        sample_groups: draw groups, then examples of them: one of every group before a second of any, so that a sample
            has as many groups as it can.
        paired: of groups that tasks share, True draws the same ones for all tasks: what differs between tasks is then
            not their pictures, and a difference of two tasks or cells is surer. False draws other ones for each task,
            as far as there are others: pairs of tasks are then as independent as they can be, and a matrix is surer
            where what a picture does to both is noise. None draws each task by itself.
        seed: seed of the sampling and the bootstrap.
        batch_size: examples in one forward pass.
        max_length: tokens kept of an example; None keeps all, and refuses more than the model was made for.
        granularity: "module", "group" or "layer": how far blocks are summed before they are stored.
        weight_space: also store the Gram of the weight-space view.
        routers: also measure MixLoRA's routers, as blocks of their own.
        memory_budget: memory for gradients, in bytes or as "2GiB".
        spool_dir: directory where gradients wait; None for `<out>.partial`.
        sketch: keep this number of random sums instead of every block's gradient; None to keep the gradient.
        step: "gradient", or "adam" to measure also the step that AdamW takes from a task's gradient.
        optimizer: the trainer's saved optimizer.pt, or the checkpoint that holds it, whose second moments AdamW's step
            divides by. None for the one beside the adapter; where there is none, they are estimated from the gradients.
    """

    samples: int = Field(100, ge=2)
    unit_size: int = Field(1, ge=1)
    token_mean: bool = False
    sample_groups: bool = False
    paired: bool | None = None
    layers: list[int] | None = None
    modules: list[str] | None = None
    components: list[Component] = Field(default_factory=lambda: [Component.LANGUAGE])
    seed: int = Field(0, ge=0, lt=SEEDS)
    batch_size: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=1)
    granularity: Granularity = Granularity.MODULE
    weight_space: bool = False
    routers: bool = False
    memory_budget: int = Field(MEMORY_BUDGET, ge=1)
    spool_dir: Place | None = None
    sketch: int | None = Field(None, ge=LEAST_SUMS)
    step: Step = Step.GRADIENT
    optimizer: Place | None = None

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

    @model_validator(mode="after")
    def _step(self) -> "ProbeConfig":
        if self.step != Step.ADAM and self.optimizer is not None:
            raise ValueError(
                "optimizer is named, but only the step of AdamW reads it; add step: adam, or drop optimizer"
            )
        if self.step == Step.ADAM and self.sketch is not None:
            raise ValueError(SKETCHED)
        return self


class AnalysisConfig(Section):
    """Everything `compute` needs, `lookahead`, `validate` and `advise --train`.

    Attributes:
        lookahead: what `interference lookahead` does; None for its defaults. `compute` does not read it.
        validation: what `interference validate` does; None for its defaults. `compute` does not read it.
        trial: what `interference advise --train` does; None for its defaults. `compute` does not read it.
        processes: trainings that `lookahead`, `validate` and `advise --train` take at once, each in a process with a
            model of its own. Not for a GPU. `compute` does not read it.
        out: the run's directory.
    """

    model: ModelConfig
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    probe: ProbeConfig = Field(default_factory=lambda: ProbeConfig.model_validate({}))
    lookahead: LookaheadConfig | None = None
    validation: ValidateConfig | None = None
    trial: TrialConfig | None = None
    processes: int = Field(1, ge=1)
    out: Place | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """{task: what its groups are by}."""
        return {name: task.group for name, task in self.tasks.items()}

    @property
    def pairing(self) -> dict[str, bool | None]:
        """{task: whether it is drawn with others (True), apart from them (False) or by itself (None)}."""
        return {name: self.probe.paired if task.paired is None else task.paired for name, task in self.tasks.items()}

    @model_validator(mode="after")
    def _paired_groups(self) -> "AnalysisConfig":
        modes = {name: mode for name, mode in self.pairing.items() if mode is not None}
        if not modes or not (self.probe.sample_groups or any(modes.values())):
            return self  # examples that are drawn one by one are not paired
        first, mode = next(((name, mode) for name, mode in modes.items() if mode), next(iter(modes.items())))
        said = f"paired is {str(mode).lower()}"
        if not self.probe.sample_groups:
            raise ValueError(
                f"{said}, but groups are only drawn with probe.sample_groups: true; set it, or drop paired"
            )
        for name, task in self.tasks.items():
            if task.paired is not None and task.group == NONE:
                raise ValueError(f"task {name!r} has paired, but its group is none; name a group, or drop paired")
        with_groups = [name for name in modes if self.tasks[name].group != NONE]
        if len(with_groups) < 2 and (mode or not with_groups or len(self.tasks) < 2):
            raise ValueError(
                f"{said} for {first!r}, but that takes two tasks with groups; give a second task one, or drop paired"
            )
        return self


def load(
    path: Path | None = None, settings: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> AnalysisConfig:
    """The configuration of a YAML file (or of a run), with `--set` settings and command-line options over it.

    Args:
        path: a YAML file, or a run's directory, whose own configuration is taken; None for options alone.
        settings: "key.subkey=value", the value in YAML.
        options: nested values that win over everything else.

    Raises:
        ConfigError: if the file is missing or not YAML, or has a key or value that cannot be used.
    """
    data = yaml_settings.read(path, AnalysisConfig, "run.json") if path else {}
    data = yaml_settings.overridden(data, settings, options or {})
    return build(data, str(path) if path else "the options")


def build(data: Mapping[str, Any], place: str) -> AnalysisConfig:
    """The configuration that nested values describe; errors name `place`.

    Raises:
        ConfigError: if a key or value cannot be used.
    """
    return yaml_settings.build(AnalysisConfig, data, place)


def is_recorded(stored: Any, wanted: AnalysisConfig) -> bool:
    """Whether a result's stored configuration is the wanted one, by value: a key that is missing has its default.

    So results of versions without the key stay valid. `out` says where a result is, `lookahead`, `validation` and
    `trial` and `processes` what other commands do; they do not count.
    """
    if not isinstance(stored, Mapping):
        return False
    try:
        found = build(stored, "the stored configuration")
    except ConfigError:
        return False
    return _measured(found) == _measured(wanted)


def _measured(config: AnalysisConfig) -> dict[str, Any]:
    return {key: value for key, value in resolved(config).items() if key not in ("out", *OF_TRAINING)}


def whole_seed(seed: int) -> int:
    """The seed as an int.

    Raises:
        ConfigError: if a generator does not accept it.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < SEEDS:
        raise ConfigError(f"seed is {seed}, but must be a whole number from 0 to {SEEDS - 1}")
    return int(seed)


def parse_bytes(text: str) -> int:
    """The number of bytes in "2GiB", "500 MB" or "1000"; decimal and binary units.

    Raises:
        ValueError: if it is not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]?i?b?)\s*", text.lower())
    if not match or match[2] not in _UNITS:
        raise ValueError("not an amount of memory; write a number of bytes, or an amount like 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])
