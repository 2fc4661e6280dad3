"""The examples that a configuration asks for: read, sampled, encoded, grouped into units and parts."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import torch

from interference.config import AnalysisConfig, TaskConfig
from interference.errors import DataError, ScopeError
from interference.measurement.units import Batch, Part, Unit, Workload
from mixlora.checkpoints.prompting import load_collator
from mixlora.data.checking import as_error, fingerprint
from mixlora.data.collation import Collator, Encoded
from mixlora.data.described import of_task
from mixlora.data.draws import draw, packed, pool_of, pool_size
from mixlora.data.examples import Example
from mixlora.data.groups import IMAGE, all_shared, connected
from mixlora.data.images import content
from mixlora.data.preview import Preview, pieces_of, previews, shortened
from mixlora.data.reading.problems import Noted, collecting
from mixlora.data.sources import examples_of


@dataclass(frozen=True)
class EncodedUnit:
    """A unit's examples as tokens, and the number of the group it is in."""

    task: str
    examples: tuple[Encoded, ...]
    group: int = 0

    @property
    def unit(self) -> Unit:
        """What the run records of it."""
        ids = " + ".join(example.id for example in self.examples)
        source = " + ".join(example.source for example in self.examples)
        return Unit(self.task, ids, source, self.group, fingerprint(example.example for example in self.examples))

    @property
    def length(self) -> int:
        """Tokens of its longest example."""
        return max(len(example.input_ids) for example in self.examples)

    @property
    def has_image(self) -> bool:
        """Whether its examples have images."""
        return self.examples[0].has_image


@dataclass(frozen=True)
class Sample:
    """Everything that will be measured, in the run's order.

    Attributes:
        collator: makes the batches.
        units: what gradients belong to.
        noted: {task: what of its data is not used}.
    """

    collator: Collator
    units: list[EncodedUnit]
    noted: dict[str, Noted] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """The sampled examples of every task, and what of its data is not used."""

    examples: dict[str, list[Example]]
    noted: dict[str, Noted]


def read(config: AnalysisConfig) -> Drawn:
    """The sampled examples of every task.

    Raises:
        DataError: if a file or records cannot be used; it describes the first twenty problems.
        ScopeError: if a task has fewer examples than two units need.
    """
    probe, problems = config.probe, list[DataError]()
    noted = {name: Noted() for name in config.tasks}
    read_task = pool_of if probe.sample_groups else _sampled
    drawn = {
        name: read_task(name, task, probe.samples, probe.seed, problems, noted[name])
        for name, task in config.tasks.items()
    }
    if problems:
        raise as_error(problems)
    if probe.sample_groups:
        drawn = draw(drawn, config.kinds, probe.samples, probe.seed, config.pairing)
    found = {}
    for name, examples in drawn.items():
        if len(examples) < 2 * probe.unit_size:
            if probe.samples < 2 * probe.unit_size:
                raise ScopeError(
                    f"samples={probe.samples} is too few for 2 units of {probe.unit_size}; set samples to "
                    f"{2 * probe.unit_size} or more, or a smaller unit_size"
                )
            raise ScopeError(
                f"task {name!r} has {len(examples)} usable examples, but 2 units of {probe.unit_size} are needed; "
                "give it more examples or a smaller unit_size"
            )
        found[name] = examples
    return Drawn(found, noted)


def previewed(config: AnalysisConfig, count: int) -> tuple[list[Preview], list[str]]:
    """Previews of the first `count` sampled examples of every task, and what a reader should know of the data.

    Raises:
        DataError: as `read`.
    """
    probe, together = config.probe, config.probe.sample_groups
    tasks = {
        name: (task, pool_size(task, probe.samples) if together else probe.samples)
        for name, task in config.tasks.items()
    }
    drawing = partial(draw, kinds=config.kinds, count=probe.samples, seed=probe.seed, paired=config.pairing)
    return previews(tasks, collator_of(config), probe.seed, count, drawing if together else None)


def _sampled(name: str, task: TaskConfig, *options: Any) -> list[Example]:
    """The sampled examples of one task."""
    return examples_of(name, task, *options)[name]


def collator_of(config: AnalysisConfig, day: date | None = None) -> Collator:
    """What makes the batches of a configuration's checkpoint, as its trainer made them.

    Args:
        config: names the checkpoint.
        day: that a template takes for today where the configuration names none; None for today.

    Raises:
        CheckpointError: if there is no tokenizer or processor.
        ConfigError: if there is no such chat template.
    """
    return load_collator(config.model, config.model.adapter, config.probe.max_length, day)


def dated(config: AnalysisConfig, collator: Collator) -> AnalysisConfig:
    """The configuration with the day that its template writes, which reruns it on any day; no day if it writes none."""
    return config.model_copy(update={"model": config.model.model_copy(update={"date": collator.template.written_day})})


def encode(drawn: Drawn, collator: Collator, config: AnalysisConfig) -> Sample:
    """The examples as tokens, in units of `unit_size`; examples that fill no whole unit are dropped.

    Raises:
        DataError: if an answer is empty or truncated away, or a prompt cannot be rendered.
        ScopeError: if a task has fewer than two units, or groups of them.
    """
    size, units = config.probe.unit_size, list[EncodedUnit]()
    for name, encoded in _encoded(drawn, collator, config).items():
        for kind in (True, False):  # a unit's examples all have an image, or none has
            alike = [example for example in encoded if example.has_image is kind]
            if config.probe.sample_groups:
                group = config.tasks[name].group
                alike = packed(alike, all_shared((each.example, group) for each in alike), size)
            whole = len(alike) - len(alike) % size
            units += [EncodedUnit(name, tuple(alike[k : k + size])) for k in range(0, whole, size)]
        count = sum(unit.task == name for unit in units)
        if count < 2:
            raise ScopeError(
                f"task {name!r} has {count} units of {size} examples that all have an image or all have none, but 2 "
                "are needed; give it more examples or a smaller unit_size"
            )
    return Sample(collator, grouped(units, config), drawn.noted)


def grouped(units: Sequence[EncodedUnit], config: AnalysisConfig) -> list[EncodedUnit]:
    """The units with their groups: units that share a picture or a value of a key are in one, also through others.

    Raises:
        DataError: if a picture can no longer be read.
        ScopeError: if a task has fewer than two groups.
    """
    kinds = config.kinds
    each = all_shared((one.example, kinds[unit.task]) for unit in units for one in unit.examples)
    shared = ([key for _ in unit.examples for key in next(each)] for unit in units)
    found = [replace(unit, group=group) for unit, group in zip(units, connected(shared), strict=True)]
    for name, kind in kinds.items():
        own = [unit.group for unit in found if unit.task == name]
        if len(set(own)) < 2:
            smaller = "" if config.probe.unit_size == 1 else ", or a smaller unit_size"
            what = "pictures" if kind == IMAGE else f"values of {kind!r}"
            raise ScopeError(
                f"the {len(own)} units of task {name!r} form 1 group, because they share {what}, but at least 2 "
                f"groups are needed: give it examples with other {what}{smaller}, or write group: none if they are "
                "independent"
            )
    return found


def _encoded(drawn: Drawn, collator: Collator, config: AnalysisConfig) -> dict[str, list[Encoded]]:
    """The examples of every task as tokens, without those that a task skips.

    Raises:
        DataError: if some cannot be encoded; it describes the first twenty problems.
    """
    found: dict[str, list[Encoded]] = {}
    problems: list[DataError] = []
    for name, examples in drawn.examples.items():
        own: list[DataError] = []
        found[name] = []
        for example in examples:
            with collecting(own):
                found[name].append(collator.encode(example))
        if config.tasks[name].on_error == "skip":
            drawn.noted[name].skip(own)
        else:
            problems += own
    if problems:
        raise as_error(problems)
    return found


def count(encoded: Sample) -> int:
    """The number of units."""
    return len(encoded.units)


def workload(encoded: Sample, config: AnalysisConfig, device: torch.device) -> Workload:
    """Parts of units of similar length.

    Sorting by length saves padding. The longest come first: if memory is too small, the first part fails.
    """
    runs = parts_of(encoded, config)
    made = (_part(encoded, run, config.probe.batch_size, device) for run in runs)
    return Workload(made, list(config.tasks), np.array([k for run in runs for k in run]), count(encoded))


def parts_of(encoded: Sample, config: AnalysisConfig) -> list[list[int]]:
    """The units of every part, in the order in which they are measured."""
    units, size = encoded.units, config.probe.unit_size
    order = sorted(range(len(units)), key=lambda k: (units[k].has_image, -units[k].length, k))
    together = max(config.probe.batch_size // size, 1)
    runs: list[list[int]] = []
    for k in order:
        if not runs or len(runs[-1]) == together or units[runs[-1][0]].has_image != units[k].has_image:
            runs.append([])
        runs[-1].append(k)
    return runs


def example_batches(
    encoded: Sample, place: int, make: Callable[[Collator, Encoded], dict[str, torch.Tensor]], device: torch.device
) -> list[Batch]:
    """The examples of one unit, each in a batch of its own that `make` makes."""
    unit = encoded.units[place]
    single = [make(encoded.collator, example) for example in unit.examples]
    return [{**{key: value.to(device) for key, value in one.items()}, "tasks": [unit.task]} for one in single]


def padded_batches(
    encoded: Sample, places: Sequence[int], size: int, device: torch.device
) -> Iterator[tuple[Batch, list[int]]]:
    """The collated batches of some units, examples of several together, and the position in `places` of each row's."""
    for kind in (True, False):
        alike = [k for k, place in enumerate(places) if encoded.units[place].has_image is kind]
        units = [encoded.units[places[k]] for k in alike]
        for batch, owners in _Batches(encoded.collator, units, size, device):
            yield batch, [alike[owner] for owner in owners]


def describe(encoded: Sample) -> dict[str, Any]:
    """What the run records of the data.

    A fingerprint; the number of cut answers; the chat template; for each task `described.of_task` and one example as
    it reached the model.
    """
    found = hashlib.sha256()
    tasks: dict[str, list[Encoded]] = {}
    for unit in encoded.units:
        for example in unit.examples:
            found.update(repr((unit.task, example.id, example.input_ids, example.labels)).encode())
            for image in example.example.images:
                found.update(content(image))
        tasks.setdefault(unit.task, []).extend(unit.examples)
    cut = {task: sum(example.truncated for example in own) for task, own in tasks.items()}
    return {
        "fingerprint": found.hexdigest()[:32],
        "truncated_answers": sum(cut.values()),
        "tasks": {
            task: of_task(
                [example.example for example in own],
                cut[task],
                encoded.noted.get(task, Noted()),
                sum(example.marked for example in own),
            )
            for task, own in tasks.items()
        },
        "template": encoded.collator.template.json(),
        "examples": {task: _shown(own[0], encoded.collator) for task, own in tasks.items()},
    }


def _shown(example: Encoded, collator: Collator) -> dict[str, Any]:
    """An example as it reached the model, the middle of a long text left out."""
    return {
        "id": example.id,
        "pieces": [[text, mark] for text, mark in shortened(pieces_of(example, collator))],
        "tokens": len(example.input_ids),
        "supervised": example.supervised,
        "cut": collator.cut(example),
    }


def _part(encoded: Sample, run: Sequence[int], batch_size: int, device: torch.device) -> Part:
    units = [encoded.units[k] for k in run]
    return Part([unit.unit for unit in units], _Batches(encoded.collator, units, batch_size, device))


@dataclass(frozen=True)
class _Batches:
    """The batches of some units, collated when they are iterated."""

    collator: Collator
    units: Sequence[EncodedUnit]
    batch_size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Batch, list[int]]]:
        rows = [(example, k) for k, unit in enumerate(self.units) for example in unit.examples]
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            batch = self.collator.collate([example for example, _ in chunk])
            moved: Batch = {key: value.to(self.device) for key, value in batch.items()}
            owners = [owner for _, owner in chunk]
            yield {**moved, "tasks": [self.units[owner].task for owner in owners]}, owners

    def alone(self) -> "_Batches":
        """The same, one example at a time."""
        return replace(self, batch_size=1)
