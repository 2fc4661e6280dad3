"""Units: what one gradient belongs to, the batches they are measured in, and their mean gradients."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interference.errors import ScopeError
from interference.gradients.examples import COUNTS
from interference.gradients.probe import BatchGradients
from interference.measurement.collated import check_batch, refuse_packed
from mixlora.checkpoints.digests import digest, of_tensor
from mixlora.checkpoints.loading import refuse_offloaded
from mixlora.common.errors import type_of

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """What one gradient belongs to.

    Attributes:
        task: its task.
        ids: of the examples it is the mean of.
        source: of those.
        group: the same number for units that are not independent, in all tasks; None where that is not known.
        content: a digest of the examples; "" until their batches are measured (`contents`).
    """

    task: str
    ids: str
    source: str
    group: int | None = None
    content: str = ""


@dataclass(frozen=True)
class Part:
    """Some whole units and their batches.

    Attributes:
        units: the units.
        batches: collated batches, and for each row the position of its unit in `units`; made when they are iterated.
    """

    units: Sequence[Unit]
    batches: Iterable[tuple[Batch, Sequence[int]]]


def one_by_one(part: Part) -> Part:
    """The part with one example in each batch, if its batches can be made again (`alone`); otherwise unchanged."""
    alone = getattr(part.batches, "alone", None)
    return part if alone is None else replace(part, batches=alone())


@dataclass(frozen=True)
class Workload:
    """All parts of a run.

    Attributes:
        parts: in the order in which they are measured.
        tasks: the tasks of the run; each needs two units.
        places: the place in the run of each unit, in the order of the parts; None if the two orders are the same.
        count: number of units; 0 if it is unknown.
    """

    parts: Iterable[Part]
    tasks: Iterable[str]
    places: NDArray[np.intp] | None = None
    count: int = 0


@dataclass
class Probed:
    """What probing found, part by part.

    Attributes:
        units: all units, in the order they were probed.
        losses: of each unit, nats per token.
        tokens: supervised tokens of each unit.
        sizes: units in each part.
    """

    units: list[Unit] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, units: Sequence[Unit], losses: Sequence[float], tokens: Sequence[int]) -> None:
        """Add a part that is in the spool."""
        self.units += units
        self.losses += losses
        self.tokens += tokens
        self.sizes.append(len(units))


class UnitMeans:
    """Mean gradients of units, summed up batch by batch."""

    def __init__(self, units: int, token_mean: bool) -> None:
        self.units = units
        self.token_mean = token_mean
        self.weights = torch.zeros(units, dtype=torch.float64)
        self.tokens = torch.zeros(units, dtype=torch.float64)
        self._losses = torch.zeros(units, dtype=torch.float64)
        self._sums: dict[str, Tensor] = {}

    def add(self, found: BatchGradients, owners: Sequence[int]) -> None:
        """Add a batch whose row n belongs to unit `owners[n]`."""
        index, tokens = torch.tensor(owners), found.tokens.double().cpu()
        weights = tokens if self.token_mean else torch.ones_like(tokens)
        self.weights.index_add_(0, index, weights)
        self.tokens.index_add_(0, index, tokens)
        self._losses.index_add_(0, index, weights * found.losses.double().cpu())
        for name, gradient in found.gradients.items():
            if name not in self._sums:
                self._sums[name] = gradient.new_zeros(self.units, *gradient.shape[1:])
            weighted = gradient * _rowwise(weights, gradient) if self.token_mean else gradient
            self._sums[name].index_add_(0, index.to(gradient.device), weighted)

    def rows(self) -> dict[str, Tensor]:
        """{block: [units, *factor shape]}, the means."""
        return {name: total / _rowwise(self.weights, total) for name, total in self._sums.items()}

    def losses(self) -> list[float]:
        """The units' losses, nats per token."""
        return (self._losses / self.weights).tolist()


def of_collated(model: nn.Module, batches: Mapping[str, Iterable[Batch]], unit: str) -> Iterator[Part]:
    """Parts of batches that the caller collated, one part a batch.

    Args:
        model: its device is where the batches' tensors go, one batch at a time.
        batches: {task: collated batches}.
        unit: "example" if every row is a unit, "batch" if the batch is one.

    Raises:
        ScopeError: if the batches are not given by task, one is not what the model takes, or a row holds several
            examples.
        CheckpointError: if not all of the model's weights are in memory.
    """
    check_by_task(batches)
    for task, given in batches.items():
        if isinstance(given, Mapping):
            raise ScopeError(f"the batches of task {task!r} are a dict; give a list of them, as [batch]")
    refuse_offloaded(model)
    device = next(model.parameters()).device
    return (
        _collated(model, task, number, batch, unit, device)
        for task, given in batches.items()
        for number, batch in enumerate(given)
    )


def check_by_task(batches: object) -> None:
    """Raise a ScopeError if batches are not a dict by task."""
    if not isinstance(batches, Mapping):
        raise ScopeError(f"batches is {type_of(batches)}, but must be a dict {{task: its batches}}")


def digested(job: str, batches: Iterable[tuple[Batch, Sequence[int]]]) -> str:
    """A digest of a job and of batches with the owners of their rows; only the same measurement has the same one.

    Whatever a batch holds counts: its tensors to the bit, and what is not a tensor by its `repr`.
    """
    found = hashlib.sha256(job.encode())
    for batch, owners in batches:
        found.update(repr(list(owners)).encode())
        for key, value in sorted(batch.items()):
            held = of_tensor(value) if isinstance(value, Tensor) else repr(value)  # the tasks of its rows, among others
            found.update(f"{key} {held} ".encode())
    return found.hexdigest()


def contents(batch: Batch) -> list[str]:
    """A digest of every example of a batch: of what its tensors hold of it without padding, in any precision.

    What a tensor holds of one example cannot always be told, as where pictures are cut into a list of patches. All of
    it then counts for each.
    """
    shape = batch["labels"].shape
    mask = batch.get("attention_mask")
    kept = mask.bool() if isinstance(mask, Tensor) and mask.shape == shape else torch.ones(shape, dtype=torch.bool)
    told = {key: value for key, value in sorted(batch.items()) if key not in (*COUNTS, "attention_mask")}
    return [digest(_shown(told, row, kept[row])) for row in range(shape[0])]


def _shown(batch: Batch, row: int, kept: Tensor) -> Iterator[bytes]:
    """The tensors of one row of a batch, at the positions that are kept."""
    for key, value in batch.items():
        own = value[row : row + 1] if isinstance(value, Tensor | list) and _by_row(value, batch) else value
        if isinstance(own, Tensor) and value.shape[:2] == batch["labels"].shape:
            own = own[:, kept.to(own.device)]
        for tensor in own if isinstance(own, list | tuple) else [own]:
            if isinstance(tensor, Tensor):
                number = torch.bfloat16 if tensor.is_floating_point() else torch.int64
                yield f"{key} {of_tensor(tensor.to(number))}".encode()


def _by_row(value: Tensor | list[Any], batch: Batch) -> bool:
    """Whether a value has an entry for every row of its batch."""
    return (not isinstance(value, Tensor) or value.dim() > 0) and len(value) == len(batch["labels"])


def _rowwise(weights: Tensor, rows: Tensor) -> Tensor:
    """Weights [units] as a factor of rows [units, ...]."""
    return weights.to(rows).view(-1, *[1] * (rows.dim() - 1))


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _collated(model: nn.Module, task: str, number: int, batch: Batch, unit: str, device: torch.device) -> Part:
    """Batch `number` of a task as a part."""
    place = f"task {task!r}, batch {number}"
    check_batch(model, batch, place)
    refuse_packed(batch, place)
    given = _moved(batch, device)
    rows = range(len(given["labels"]))
    batch = {"tasks": [task] * len(rows), **given}
    if unit == "batch":
        return Part([Unit(task, f"batch {number}", f"{task} batch {number}")], [(batch, [0] * len(rows))])
    units = [Unit(task, f"{number}.{row}", f"{task} batch {number} row {row}") for row in rows]
    return Part(units, [(batch, list(rows))])
