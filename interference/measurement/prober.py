"""Probing: batches go through a model, per-unit gradients come out and wait in a spool.

A part is what is measured and stored together: some whole units, and the batches that their examples are in.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interference.errors import MeasurementError
from interference.gradients.probe import BatchGradients, Probe
from interference.gradients.sketch import sketched
from interference.gradients.weight_space import weight_space_rows
from interference.measurement.spool import ALL, DiskSpool, MemorySpool, Shard
from interference.measurement.units import Batch, Part, Probed, Unit, UnitMeans
from mixlora.common.progress import Progress, silent

OWNER = "unit"  # of every example whose selections are kept


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
            rows |= weight_space_rows(self.probe.targets, rows)
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
