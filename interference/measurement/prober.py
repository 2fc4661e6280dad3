"""Probing: batches go through a model, per-unit gradients come out and wait in a spool.

A part is what is measured and stored together: some whole units, and the batches that their examples are in.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interference.blocks import Block, Side
from interference.errors import MeasurementError, ScopeError
from interference.gradients.probe import BatchGradients, Probe
from interference.gradients.sketch import sketched
from interference.gradients.targets import Target
from interference.measurement.gram import weight_rows
from interference.measurement.spool import ALL, DiskSpool, MemorySpool, Shard
from mixlora.common.progress import Progress, silent

Batch = Mapping[str, Any]
OWNER = "unit"  # of every example whose selections are kept


@dataclass(frozen=True)
class Unit:
    """What one gradient belongs to: its task, and the examples it is the mean of."""

    task: str
    ids: str
    source: str


@dataclass(frozen=True)
class Part:
    """Some whole units and their batches.

    Attributes:
        units: the units.
        batches: collated batches, and for each row the position of its unit in `units`; made when they are iterated.
    """

    units: Sequence[Unit]
    batches: Iterable[tuple[Batch, Sequence[int]]]


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

    def add(self, part: Part, losses: Sequence[float], tokens: Sequence[int]) -> None:
        """Note a part that is in the spool."""
        self.units += part.units
        self.losses += losses
        self.tokens += tokens
        self.sizes.append(len(part.units))


def weight_block(target: Target) -> Block:
    """The block of the weight-space view of a target."""
    a, b = target.blocks
    return Block(a.component, a.layer, a.module, a.group, Side.W, a.size + b.size)


@dataclass
class Prober:
    """Measures parts one after another.

    Attributes:
        probe: an open Probe.
        spool: where gradients go.
        token_mean: weigh a unit's examples by their supervised tokens.
        weight_space: also spool the rows of the weight-space view.
        progress: told of every part.
        total: number of units, if known.
        sketch: random sums that are kept of every block's row; None for the row.
        seed: of the sketches.
        shard: which parts are this process's.
        job: what parts must have been measured for to be taken from the spool, beside the batches.
    """

    probe: Probe
    spool: MemorySpool | DiskSpool
    token_mean: bool = False
    weight_space: bool = False
    progress: Progress = silent
    total: int = 0
    sketch: int | None = None
    seed: int = 0
    shard: Shard = ALL
    job: str = ""

    def run(self, parts: Iterable[Part]) -> Probed:
        """Measure every part, or take it from the spool where an interrupted run left it.

        Of parts that are another process's, losses and tokens are 0.
        """
        found = Probed()
        for number, part in enumerate(parts):
            if self.shard.owns(number):
                found.add(part, *self._part(number, part))
            else:
                found.add(part, [0.0] * len(part.units), [0] * len(part.units))
            self.progress("gradients", len(found.units), self.total)
        return found

    def _part(self, number: int, part: Part) -> tuple[list[float], list[int]]:
        if not isinstance(self.spool, DiskSpool):
            rows, losses, tokens = self._measure(part, part.batches)
            self.spool.write(number, rows)
            return losses, tokens
        batches = list(part.batches)
        digest = digested(self.job, batches)
        kept = self.spool.metadata(number)
        if kept and kept.get("batches") == digest:
            return json.loads(kept["losses"]), json.loads(kept["tokens"])
        rows, losses, tokens = self._measure(part, batches)
        metadata = {"batches": digest, "losses": json.dumps(losses), "tokens": json.dumps(tokens)}
        self.spool.write(number, rows, metadata)
        return losses, tokens

    def _measure(
        self, part: Part, batches: Iterable[tuple[Batch, Sequence[int]]]
    ) -> tuple[dict[str, Tensor], list[float], list[int]]:
        mean, chosen = UnitMeans(len(part.units), self.token_mean), _Selections()
        for batch, owners in batches:
            gradients = self._gradients(batch, [part.units[owner] for owner in owners])
            mean.add(gradients, owners)
            chosen.add(gradients.selections, owners)
        rows = mean.rows()
        if self.weight_space:
            rows |= self._weight_rows(rows)
        if self.sketch is not None:
            rows = sketched(rows, self.sketch, self.seed)
        rows |= chosen.rows()
        return {name: tensor.cpu() for name, tensor in rows.items()}, mean.losses(), mean.tokens.long().tolist()

    def _gradients(self, batch: Batch, owners: Sequence[Unit]) -> BatchGradients:
        found = self.probe.gradients(batch)
        finite = torch.isfinite(found.losses)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise MeasurementError(
                f"task {owners[row].task!r}, example {owners[row].source}: the loss is {float(found.losses[row])}; "
                "the checkpoint is broken or its dtype too narrow (try dtype: float32)"
            )
        for name, gradient in found.gradients.items():
            finite = torch.isfinite(gradient.flatten(1).sum(dim=1))
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                raise MeasurementError(
                    f"task {owners[row].task!r}, example {owners[row].source}, block {name}: the gradient is not "
                    "finite; the checkpoint is broken or its dtype too narrow (try dtype: float32)"
                )
        return found

    def _weight_rows(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for target in self.probe.targets:
            gradient_a, gradient_b = (rows[block.name] for block in target.blocks)
            a, b = (tap.weight.detach().to(gradient_a.dtype) for tap in target.taps.values())
            scaling = target.layer.scaling[target.adapter]
            found[weight_block(target).name] = weight_rows(gradient_a, gradient_b, a, b, scaling)
        return found


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


def _rowwise(weights: Tensor, rows: Tensor) -> Tensor:
    """Weights [units] as a factor of rows [units, ...]."""
    return weights.to(rows).view(-1, *[1] * (rows.dim() - 1))


class _Selections:
    """The factors that every example used, where the adapter is a mixture."""

    def __init__(self) -> None:
        self._found: dict[str, list[Tensor]] = {}

    def add(self, selections: Mapping[str, Tensor], owners: Sequence[int]) -> None:
        """Add a batch whose row n belongs to unit `owners[n]` of the part."""
        if selections:
            for name, selected in {**selections, OWNER: torch.tensor(owners)}.items():
                self._found.setdefault(selected_rows(name), []).append(selected.cpu().int())

    def rows(self) -> dict[str, Tensor]:
        """What waits in the spool beside the gradients: [examples of the part, r]."""
        return {name: torch.cat(parts) for name, parts in self._found.items()}


def selected_rows(name: str) -> str:
    """Where in a spool the selections of a block wait."""
    return f"{name} selected"


def of_collated(batches: Mapping[str, Iterable[Batch]], unit: str) -> Iterator[Part]:
    """Parts of batches that the caller collated, one a batch: its rows are units, or it is a unit as a whole."""
    for task, iterable in batches.items():
        for number, given in enumerate(iterable):
            if "labels" not in given:
                raise ScopeError(f"task {task!r}, batch {number} has no labels; collate it with labels [batch, seq]")
            rows = range(len(given["labels"]))
            batch = {"tasks": [task] * len(rows), **given}
            if unit == "batch":
                yield Part([Unit(task, f"batch {number}", f"{task} batch {number}")], [(batch, [0] * len(rows))])
            else:
                units = [Unit(task, f"{number}.{row}", f"{task} batch {number} row {row}") for row in rows]
                yield Part(units, [(batch, list(rows))])


def digested(job: str, batches: Iterable[tuple[Batch, Sequence[int]]]) -> str:
    """A digest of a job and of batches with the owners of their rows: the same for the same measurement alone."""
    found = hashlib.sha256(job.encode())
    for batch, owners in batches:
        found.update(repr(list(owners)).encode())
        for key, value in sorted(batch.items()):
            found.update(key.encode())
            if isinstance(value, Tensor):
                found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
