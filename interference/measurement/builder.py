"""Measuring: what of a model is measured, and how probed gradients become a run."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from interference.blocks import Block, Granularity, coarsen, to_frame
from interference.errors import MeasurementError, ScopeError, WriteError
from interference.gradients.targets import Target
from interference.gradients.weight_space import weight_block
from interference.measurement.gram import grams
from interference.measurement.prober import OWNER, selected_rows
from interference.measurement.spool import ALL, DiskSpool, Shard, Spool
from interference.measurement.units import Probed
from interference.run import Run
from interference.run.grams import pack, packed_bytes, write_packed
from interference.run.run import GramFile
from mixlora import MixLoraLayer
from mixlora.common import processes
from mixlora.common.progress import Progress


class Measuring:
    """From probed gradients to a run.

    Attributes:
        targets: what is probed.
        blocks: theirs, and those of the weight-space view.
        found: what was probed, once `take` was called.
        places: the place in the run of every probed unit.
        seconds: that each stage took.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        granularity: Granularity,
        weight_space: bool,
        memory_budget: int,
        progress: Progress,
        sketch: int | None = None,
        shard: Shard = ALL,
    ) -> None:
        self.targets = targets
        self.selecting = [block for target in targets if _mixes(target) for block in target.blocks[:2]]
        if weight_space and self.selecting:
            raise ScopeError(
                "weight_space is for LoRA: MixLoRA has no single weight that a step changes; leave weight_space out"
            )
        self.blocks = [block for target in targets for block in target.blocks]
        if weight_space:
            self.blocks += [weight_block(target) for target in targets]
        self.granularity = granularity
        self.memory_budget = memory_budget
        self.progress = progress
        self.sketch = sketch
        self.shard = shard
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.found, self.places = Probed(), np.zeros(0, dtype=np.intp)

    def stored(self) -> tuple[list[Block], dict[str, list[tuple[str, int]]]]:
        """The blocks a run keeps, and which probed blocks (with their rows' entries) each is the sum of."""
        kept: dict[str, Block] = {}
        sums: dict[str, list[tuple[str, int]]] = {}
        for block in self.blocks:
            coarse = coarsen(block, self.granularity)
            size = block.size + (kept[coarse.name].size if coarse.name in kept else 0)
            kept[coarse.name] = Block(coarse.component, coarse.layer, coarse.module, coarse.group, coarse.side, size)
            sums.setdefault(coarse.name, []).append((block.name, self._entries(block)))
        return list(kept.values()), sums

    def spooled(self, units: int) -> int:
        """Bytes that the rows of so many units take."""
        return 4 * units * sum(self._entries(block) for block in self.blocks)

    def kept(self, units: int) -> int:
        """Bytes that the Gram matrices of so many units take."""
        return packed_bytes(len(self.stored()[0]), units)

    def take(self, found: Probed, order: np.ndarray) -> None:
        """Take what was probed, by all processes; `order[n]` is the place in the run of the n-th probed unit."""
        self.found, self.places = found, order
        self._note("gradients")
        if self.shard.count > 1:
            found.losses = processes.total(torch.tensor(found.losses, dtype=torch.float64)).tolist()
            found.tokens = processes.total(torch.tensor(found.tokens)).tolist()

    def packed(self, spool: Spool) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The packed Gram matrices to keep, one after another, units in the run's order.

        Raises:
            MeasurementError: at the end, if every gradient is zero.
        """
        _, sums = self.stored()
        place, silent_blocks = np.argsort(self.places), 0
        made = grams(spool, self.found.sizes, sums, self.memory_budget // 2, self.shard)
        for done, (name, matrix) in enumerate(made, 1):
            silent_blocks += not matrix.any()
            yield name, pack(matrix, place)
            self.progress("gram", done, len(sums))
        if silent_blocks == len(sums):
            raise MeasurementError("every gradient is zero: the adapter changes no supervised token's loss")
        self._note("gram")

    def write(self, spool: DiskSpool, file: Path) -> Mapping[str, NDArray[np.float32]]:
        """The packed Gram matrices in a file, so that they need not fit into memory.

        Raises:
            WriteError: if it cannot be written.
            MeasurementError: as `packed`.
        """
        packed = self.packed(spool)
        if self.shard.rank > 0:
            deque(packed, maxlen=0)  # the first process writes what all have made
            return {}
        try:
            write_packed(file, list(self.stored()[1]), len(self.found.units), packed)
        except OSError as error:
            if self.shard.count > 1:
                deque(packed, maxlen=0)  # the others wait for this one's share of what is left
            told = f"{file} cannot be written: {error.strerror or error}"
            raise WriteError(f"{told}; make room there, and the same command continues") from None
        return GramFile(file)

    def run(self, grams: Mapping[str, NDArray[np.float32]], spool: Spool, meta: Mapping[str, Any]) -> Run:
        """The run of what was probed."""
        found, place = self.found, np.argsort(self.places)
        units = [found.units[k] for k in place]
        probes = pd.DataFrame(
            {
                "task": [unit.task for unit in units],
                "loss": [found.losses[k] for k in place],
                "tokens": [found.tokens[k] for k in place],
                "ids": [unit.ids for unit in units],
                "source": [unit.source for unit in units],
            }
        )
        frame = to_frame(self.stored()[0])
        return Run(probes, frame, grams, {**meta, "seconds": self.seconds}, self._selections(spool))

    def _selections(self, spool: Spool) -> dict[str, np.ndarray]:
        """{block name: [examples, r]} in the order of the run's units, which `OWNER` names; empty for LoRA."""
        if not self.selecting:
            return {}
        names = [OWNER, *(block.name for block in self.selecting)]
        own = [part for part in range(len(self.found.sizes)) if self.shard.owns(part)]
        with processes.together() if self.shard.count > 1 else nullcontext():  # a part may be gone
            held = {part: {name: spool.read(part, selected_rows(name)).numpy() for name in names} for part in own}
        everyones = processes.gathered(held) if self.shard.count > 1 else [held]  # one may measure while others train
        parts = {part: rows for each in everyones for part, rows in each.items()}
        first = np.cumsum([0, *self.found.sizes[:-1]])
        owner = self.places[np.concatenate([parts[part][OWNER] + start for part, start in enumerate(first)])]
        place = np.argsort(owner, kind="stable")
        found = {name: np.concatenate([parts[part][name] for part in range(len(first))])[place] for name in names[1:]}
        return {OWNER: owner.astype(np.int32)[place]} | found

    def _entries(self, block: Block) -> int:
        return block.size if self.sketch is None else min(block.size, self.sketch)

    def _note(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.started = round(now - self.started, 2), now


def _mixes(target: Target) -> bool:
    return isinstance(target.layer, MixLoraLayer)
