"""Probing: batches go through a model; the gradients of their units wait in a spool.

A part is measured and stored together: some whole units, and the batches that hold their examples.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from interference.errors import MeasurementError
from interference.gradients.probe import BatchGradients, Probe
from interference.gradients.sketch import sketched
from interference.gradients.weight_space import weight_space_rows
from interference.measurement.shard import ALL, Shard
from interference.measurement.spec import Spec
from interference.measurement.spool import DiskSpool, MemorySpool
from interference.measurement.units import Batch, Part, Probed, Unit, UnitMeans, contents, digested
from mixlora.checkpoints.digests import digest
from mixlora.common.progress import Progress, silent

OWNER = "unit"
"""The name of the rows that hold the unit of every example whose selections are kept."""


@dataclass
class Prober:
    """Measures parts one after another.

    Attributes:
        probe: an open Probe.
        spool: where gradients go.
        spec: what is measured.
        progress: called after every part.
        total: number of units, if known.
        shard: which parts are this process's.
        job: identity of the measurement; only parts of the same job are taken from the spool.
        again: parts that waited in the spool, damaged or of changed examples, and were measured again.
    """

    probe: Probe
    spool: MemorySpool | DiskSpool
    spec: Spec
    progress: Progress = silent
    total: int = 0
    shard: Shard = ALL
    job: str = ""
    again: list[int] = field(default_factory=list)

    def run(self, parts: Iterable[Part]) -> Probed:
        """Measure every part, or take it from the spool where an interrupted run left it.

        The losses and tokens of other processes' parts are 0.
        """
        found = Probed()
        for number, part in enumerate(parts):
            if self.shard.owns(number):
                found.add(*self._part(number, part))
            else:
                found.add(part.units, [0.0] * len(part.units), [0] * len(part.units))
            self.progress("gradients", len(found.units), self.total)
        return found

    def _part(self, number: int, part: Part) -> tuple[Sequence[Unit], list[float], list[int]]:
        """The units of a part, their losses and tokens; their gradients are in the spool afterwards."""
        if not isinstance(self.spool, DiskSpool):
            seen = _Contents(part)
            rows, losses, tokens = self._measure(part, seen)
            self.spool.write(number, rows)
            return seen.units(), losses, tokens
        batches = list(part.batches)
        held = digested(self.job, batches)
        kept = self.spool.metadata(number)
        if kept and kept.get("batches") == held:
            return part.units, json.loads(kept["losses"]), json.loads(kept["tokens"])
        if self.spool.path(number).exists():
            self.again.append(number)
        rows, losses, tokens = self._measure(part, batches)
        metadata = {"batches": held, "losses": json.dumps(losses), "tokens": json.dumps(tokens)}
        self.spool.write(number, rows, metadata)
        return part.units, losses, tokens

    def _measure(
        self, part: Part, batches: Iterable[tuple[Batch, Sequence[int]]]
    ) -> tuple[dict[str, Tensor], list[float], list[int]]:
        mean, chosen = UnitMeans(len(part.units), self.spec.token_mean), _Selections()
        for batch, owners in batches:
            gradients = self._gradients(batch, [part.units[owner] for owner in owners])
            mean.add(gradients, owners)
            chosen.add(gradients.selections, owners)
        rows = mean.rows()
        if self.spec.weight_space:
            rows |= weight_space_rows(self.probe.targets, rows)
        if self.spec.sketch is not None:
            rows = sketched(rows, self.spec.sketch, self.spec.seed)
        rows |= chosen.rows()
        return {name: tensor.cpu() for name, tensor in rows.items()}, mean.losses(), mean.tokens.long().tolist()

    def _gradients(self, batch: Batch, owners: Sequence[Unit]) -> BatchGradients:
        """The gradients of a batch whose row n belongs to unit `owners[n]`.

        Raises:
            MeasurementError: if a loss or gradient is not finite.
        """
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


class _Contents:
    """The batches of a part, and the digests of its units' examples once all have been seen."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._found: list[list[str]] = [[] for _ in part.units]

    def __iter__(self) -> Iterator[tuple[Batch, Sequence[int]]]:
        for batch, owners in self._part.batches:
            for owner, content in zip(owners, contents(batch), strict=True):
                self._found[owner].append(content)
            yield batch, owners

    def units(self) -> list[Unit]:
        """The units, with the digests of those that had none."""
        found = zip(self._part.units, self._found, strict=True)
        return [unit if unit.content else replace(unit, content=digest([repr(own).encode()])) for unit, own in found]


class _Selections:
    """The factors that every example used, if the adapter is a mixture."""

    def __init__(self) -> None:
        self._found: dict[str, list[Tensor]] = {}

    def add(self, selections: Mapping[str, Tensor], owners: Sequence[int]) -> None:
        """Add a batch whose row n belongs to unit `owners[n]` of the part."""
        if selections:
            for name, selected in {**selections, OWNER: torch.tensor(owners)}.items():
                self._found.setdefault(selected_rows(name), []).append(selected.cpu().int())

    def rows(self) -> dict[str, Tensor]:
        """Rows for the spool: {name: [examples of the part, r]}."""
        return {name: torch.cat(parts) for name, parts in self._found.items()}


def selected_rows(name: str) -> str:
    """The name in a spool of a block's selections."""
    return f"{name} selected"
