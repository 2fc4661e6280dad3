"""RunBuilder: how probed gradients become a run."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from interference.blocks import Block, Side, Step, coarsen, to_frame
from interference.errors import MeasurementError, ScopeError, WriteError
from interference.gradients.targets import Target
from interference.gradients.weight_space import weight_block
from interference.measurement.adam import AdamGrams, Moments, weights_of
from interference.measurement.gram import grams
from interference.measurement.prober import OWNER, selected_rows
from interference.measurement.shard import ALL, Shard
from interference.measurement.spec import Spec
from interference.measurement.spool import Spool
from interference.measurement.units import Probed
from interference.run import Run
from interference.run.grams import GramFile, adam, pack, packed_bytes, sum_of, write_packed
from mixlora import MixLoraLayer
from mixlora.common.progress import Progress, silent


class RunBuilder:
    """Builds a run from probed gradients: `take` what was probed, multiply `grams`, then `run`.

    Attributes:
        spec: what is measured.
        targets: the probed modules.
        blocks: the blocks of the targets, and those of the weight-space view.
        progress: called after every Gram matrix.
        shard: this process's share of the work.
        found: what was probed, after `take`.
        places: the place in the run of every probed unit.
        moments: what AdamW's step divides by; None to estimate it, where that step is measured.
        seconds: what each stage took.
    """

    def __init__(
        self,
        spec: Spec,
        targets: Sequence[Target],
        progress: Progress = silent,
        shard: Shard = ALL,
        moments: Moments | None = None,
    ) -> None:
        """Check that the spec fits the targets.

        Raises:
            ScopeError: if the weight-space view of a MixLoRA is to be measured.
        """
        self.spec = spec
        self.targets = targets
        self.selecting = [block for target in targets if _mixes(target) for block in target.blocks[:2]]
        if spec.weight_space and self.selecting:
            raise ScopeError(
                "weight_space is for LoRA: MixLoRA has no single weight that a step changes; leave weight_space out"
            )
        self.blocks = [block for target in targets for block in target.blocks]
        if spec.weight_space:
            self.blocks += [weight_block(target) for target in targets]
        self.progress = progress
        self.shard = shard
        self.moments = moments
        self.adam: dict[str, Any] = {}
        self.estimated: dict[str, NDArray[np.float32]] = {}
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.found, self.places = Probed(), np.zeros(0, dtype=np.intp)

    def stored(self) -> tuple[list[Block], dict[str, list[tuple[str, int]]]]:
        """The blocks that the run stores, and the probed blocks (with their rows' entries) that each is the sum of."""
        kept: dict[str, Block] = {}
        sums: dict[str, list[tuple[str, int]]] = {}
        for block in self.blocks:
            coarse = coarsen(block, self.spec.granularity)
            size = block.size + (kept[coarse.name].size if coarse.name in kept else 0)
            kept[coarse.name] = Block(coarse.component, coarse.layer, coarse.module, coarse.group, coarse.side, size)
            sums.setdefault(coarse.name, []).append((block.name, self._entries(block)))
        return list(kept.values()), sums

    def steps(self) -> dict[str, list[tuple[str, int]]]:
        """What `stored` gives of the blocks of which AdamW's step is measured; empty where it is not."""
        blocks, sums = self.stored()
        return {block.name: sums[block.name] for block in blocks if self.steps_of(block)}

    def steps_of(self, block: Block) -> bool:
        """Whether AdamW's step of a block is measured."""
        return self.spec.step is Step.ADAM and block.side is not Side.W

    def spool_bytes(self, units: int) -> int:
        """Bytes that the rows of `units` units take."""
        return 4 * units * sum(self._entries(block) for block in self.blocks)

    def gram_bytes(self, units: int) -> int:
        """Bytes that the Gram matrices of `units` units take."""
        return packed_bytes(len(self.stored()[0]), units, len(self.steps()))

    def take(self, found: Probed, places: NDArray[np.intp] | None = None) -> None:
        """Take what all processes have probed.

        Args:
            found: what this process has probed.
            places: the place in the run of each probed unit; None if the run has them in this order.
        """
        self.found, self.places = found, np.arange(len(found.units)) if places is None else places
        self._note("gradients")
        found.losses = self.shard.total(torch.tensor(found.losses, dtype=torch.float64)).tolist()
        found.tokens = self.shard.total(torch.tensor(found.tokens)).tolist()

    def grams(self, spool: Spool, file: Path | None = None) -> Mapping[str, NDArray[np.float32]]:
        """The packed Gram matrices, units in the run's order.

        Args:
            spool: where the gradients wait.
            file: where the first process writes the matrices, so that they need not fit into memory; the other
                processes return nothing. None to return them from memory.

        Raises:
            MeasurementError: if every gradient is zero.
            WriteError: if the file cannot be written.
        """
        packed = self._packed(spool)
        if file is None:
            return dict(packed)
        if not self.shard.first:
            deque(packed, maxlen=0)  # the first process writes what all have multiplied
            return {}
        try:
            names = [*self.stored()[1], *map(adam, self.steps())]
            write_packed(file, names, len(self.found.units), packed)
        except OSError as error:
            if self.shard.count > 1:
                deque(packed, maxlen=0)  # the others wait for this process's share of the remaining matrices
            failed = f"{file} cannot be written: {error.strerror or error}"
            raise WriteError(f"{failed}; make room there, and the same command continues") from None
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
                "content": [unit.content for unit in units],
            }
        )
        if all(unit.group is not None for unit in units):
            probes["group"] = [unit.group for unit in units]
        frame = to_frame(self.stored()[0])
        own = {"adam": self.adam} if self.adam else {}
        meta = {**meta, **own, "seconds": self.seconds}
        return Run(probes, frame, grams, meta, self._selections(spool), self.estimated)

    def _packed(self, spool: Spool) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The packed Gram matrices, one after another.

        Raises:
            MeasurementError: at the end, if every gradient is zero.
        """
        _, sums = self.stored()
        place, silent_blocks = np.argsort(self.places), 0
        made = grams(spool, self.found.sizes, sums, self.spec.half_budget, self.shard)
        for done, (name, matrix) in enumerate(made, 1):
            silent_blocks += not matrix.any()
            yield name, pack(matrix, place)
            self.progress("gram", done, len(sums))
        if silent_blocks == len(sums):
            raise MeasurementError("every gradient is zero: the adapter changes no supervised token's loss")
        yield from self._stepped(spool, place)
        self._note("gram")

    def _stepped(self, spool: Spool, place: NDArray[np.intp]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The packed Gram matrices of AdamW's step, one after another, each with the squared lengths of the steps."""
        wanted, sizes = self.steps(), self.found.sizes
        weights = weights_of([unit.task for unit in self.found.units])
        made = AdamGrams(self.moments, weights, self.spec.half_budget, self.shard)
        for done, (name, members) in enumerate(wanted.items(), 1):
            each = [made.of(spool, sizes, block, width) for block, width in members]
            matrix, squares = (sum_of(part) for part in zip(*each, strict=True))
            yield adam(name), np.concatenate([pack(matrix, place), squares[place]])
            self.progress("gram of adam", done, len(wanted))
        self.adam, self.estimated = made.meta() if wanted else {}, made.estimated

    def _selections(self, spool: Spool) -> dict[str, np.ndarray]:
        """{block name: [examples, r]} in the order of the run's units, which `OWNER` names; empty for LoRA."""
        if not self.selecting:
            return {}
        names = [OWNER, *(block.name for block in self.selecting)]
        own = [part for part in range(len(self.found.sizes)) if self.shard.owns(part)]
        with self.shard.together():  # a part may be gone
            held = {part: {name: spool.read(part, selected_rows(name)).numpy() for name in names} for part in own}
        parts = {part: rows for each in self.shard.gathered(held) for part, rows in each.items()}
        first = np.cumsum([0, *self.found.sizes[:-1]])
        owner = self.places[np.concatenate([parts[part][OWNER] + start for part, start in enumerate(first)])]
        place = np.argsort(owner, kind="stable")
        found = {name: np.concatenate([parts[part][name] for part in range(len(first))])[place] for name in names[1:]}
        return {OWNER: owner.astype(np.int32)[place]} | found

    def _entries(self, block: Block) -> int:
        """Entries of a block's row in the spool."""
        return block.size if self.spec.sketch is None else min(block.size, self.spec.sketch)

    def _note(self, stage: str) -> None:
        """Record what the stage that ends now took."""
        now = time.perf_counter()
        self.seconds[stage], self.started = round(now - self.started, 2), now


def _mixes(target: Target) -> bool:
    return isinstance(target.layer, MixLoraLayer)
