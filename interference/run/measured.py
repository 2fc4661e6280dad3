"""Measured: what a run holds: its units, its blocks and their Gram matrices, and which of them a scope picks.

Not here: what they say (`run`), their directory (`storage`), and how they are packed (`grams`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interference.blocks import Scope, Side, Space, select
from interference.errors import ScopeError
from interference.run import storage
from interference.run.grams import Grams, adam, is_adam, sum_of, unpack
from interference.statistics.estimand import Aggregate
from interference.statistics.layout import Preconditioned, held_repeatedly

Theta = NDArray[np.float32] | Grams | Preconditioned
"""The Gram matrix of a scope, or those of its blocks; of AdamW's step with the lengths of the steps."""


class Measured:
    """The units and blocks of a measurement, and the Gram matrices of their gradients.

    Attributes:
        probes: One row per unit: task, loss (nats per token), tokens (supervised), ids, source; content, a digest of
            its examples (not in runs of earlier versions); and group, the same number for units that are not
            independent, in all tasks, where that is known.
        blocks: One row per block: name, component, layer, module, group, side, size (gradient entries).
        meta: How the run came about: config, conventions, fingerprints, versions, timings, notes.
        selections: Of a MixLoRA run, the factors that every example used: {block name: [examples, r], ranked}, and
            under "unit" [examples] the row of `probes` that each belongs to; empty for LoRA.
        moments: Second moments that AdamW's step divides by, where they were estimated: {name of a block before blocks
            were summed: [entries]}, squared nats per token; empty else.
    """

    def __init__(
        self,
        probes: pd.DataFrame,
        blocks: pd.DataFrame,
        grams: Mapping[str, NDArray[np.float32]],
        meta: Mapping[str, Any],
        selections: Mapping[str, NDArray[np.int32]] | None = None,
        moments: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Hold a measurement; `interference.compute` and `interference.load` make runs.

        Args:
            probes: As the attribute.
            blocks: As the attribute.
            grams: {block name: packed upper triangle [units * (units + 1) / 2]}.
            meta: As the attribute.
            selections: As the attribute; None for LoRA.
            moments: As the attribute; None where none were estimated.
        """
        self.probes = probes
        self.blocks = blocks
        self.meta = dict(meta)
        self.selections = dict(selections or {})
        self.moments = moments or {}
        self._grams = grams

    def __repr__(self) -> str:
        counts = ", ".join(f"{task} {count}" for task, count in self.probes["task"].value_counts(sort=False).items())
        return f"Run({len(self.probes)} units: {counts}; {len(self.blocks)} blocks)"

    @property
    def tasks(self) -> list[str]:
        """Task names, by first appearance: the order of rows and columns of every matrix."""
        return list(dict.fromkeys(self.probes["task"]))

    @property
    def layers(self) -> list[int]:
        """Transformer blocks that were probed, from 0: what `layers=` takes."""
        return sorted({int(layer) for layer in self.blocks["layer"].dropna()})

    @property
    def modules(self) -> list[str]:
        """Names of modules, groups and, where there are several, components: what `modules=` takes."""
        columns = ["module", "group", *(["component"] if self.blocks["component"].nunique() > 1 else [])]
        return list(dict.fromkeys(str(name) for column in columns for name in self.blocks[column]))

    @property
    def sides(self) -> list[str]:
        """Sides that were probed, "A" and "B" first: what `side=` takes."""
        there = set(self.blocks["side"])
        return [side.value for side in Side if side in there and side is not Side.W]

    @property
    def groups(self) -> list[int] | None:
        """The group of every unit; None where units are taken as independent because nothing is known of groups."""
        return [int(group) for group in self.probes["group"]] if "group" in self.probes else None

    @property
    def _labels(self) -> list[int]:
        """A label of every unit, its own where nothing is known of groups."""
        return list(range(len(self.probes))) if self.groups is None else self.groups

    @property
    def seed(self) -> int:
        """The seed of the sampling and of the bootstrap."""
        return int(self.meta.get("seed", 0))

    def scope(
        self,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
    ) -> pd.DataFrame:
        """The rows of `blocks` in a scope.

        Args:
            layers: Transformer blocks, from 0; None for all that were probed.
            modules: Module names, "attention" or "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "adam" or "weight" of a run computed with `step="adam"` or `weight_space=True`.

        Returns:
            One row per block, as in `blocks`.

        Raises:
            ScopeError: If the run lacks a layer, module, side or space, or no block is in all of them.
        """
        return select(self.blocks, Scope(layers, modules, side, space))

    def grams(self, names: Sequence[str]) -> Grams:
        """The Gram matrices of some blocks, unpacked one at a time.

        Args:
            names: Of rows of `blocks`.

        Returns:
            A sequence of [units, units] in the order of the names, squared nats per token.
        """
        return Grams(self._grams, names, len(self.probes))

    def gram(
        self,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
    ) -> NDArray[np.float32]:
        """The Gram matrix of a scope: the sum of its blocks'.

        With `space="adam"` it is of gradients and AdamW's steps, <g_u, P g_v>; `theta` also has the lengths of these.

        Args:
            layers: Transformer blocks, from 0; None for all that were probed.
            modules: Module names, "attention" or "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "adam" or "weight" of a run computed with `step="adam"` or `weight_space=True`.

        Returns:
            [units, units], inner products of the units' gradients, squared nats per token.

        Raises:
            ScopeError: If the scope is not there.

        Example:
            >>> import interference
            >>> run = interference.load("reports/reference/lora")
            >>> gram = run.gram(layers=[3], side="A")
            >>> gram.shape == (len(run.probes), len(run.probes)) and bool((gram == gram.T).all())
            True
        """
        return self._sum(Scope(layers, modules, side, space))

    def theta(
        self,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
        aggregate: Aggregate | str = Aggregate.SUM,
    ) -> Theta:
        """What the functions of `interference.metrics` and `interference.uncertainty` take of a scope.

        Args:
            layers: Transformer blocks, from 0; None for all that were probed.
            modules: Module names, "attention" or "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "adam" or "weight" of a run computed with `step="adam"` or `weight_space=True`.
            aggregate: "sum" for the sum of the blocks, "mean" for one after another.

        Returns:
            [units, units], or a sequence of them, one per block. Of AdamW's step: its `grams`, <g_u, P g_v>, with the
            `squares` of the lengths |P g_u|, [units] or [blocks, units].

        Raises:
            ScopeError: If the scope is not there.
        """
        return self._theta(Scope(layers, modules, side, space), aggregate)

    def zero_blocks(self) -> list[str]:
        """The names of blocks in which every gradient is zero: A's, as long as B is at its initial zero.

        Returns:
            Names of rows of `blocks`.
        """
        return [name for name in self.blocks["name"] if not self._grams[name].any()]

    def overlap(self) -> pd.DataFrame:
        """The share of a task's groups in which another task also has units.

        Returns:
            [tasks, tasks]: of the row's groups, the share that the column has; 0 where no groups are known.
        """
        held = [set(self.probes.loc[self.probes["task"] == task].get("group", [])) for task in self.tasks]
        shares = [[len(own & other) / max(len(own), 1) for other in held] for own in held]
        np.fill_diagonal(values := np.array(shares, dtype=float), 1)
        return pd.DataFrame(values, pd.Index(self.tasks, name="task"), self.tasks)

    def copies(self) -> list[list[int]]:
        """Units whose gradients are equal up to rounding: the same example, more than once.

        Returns:
            A list for each such example: its rows of `probes`.
        """
        return held_repeatedly(self.gram())

    def save(self, out: Path | str, grams: Path | None = None) -> None:
        """Write the run to a directory that must not exist yet: to a temporary name, synced, renamed.

        Args:
            out: The directory.
            grams: A file of its packed Gram matrices that may be moved there; None to write them.

        Raises:
            RunError: If `out` exists or cannot be written.
            WriteError: If its disk is full or gone.
        """
        storage.write(self, out, grams)

    def _sum(self, scope: Scope) -> NDArray[np.float32]:
        """The Gram matrix of a scope."""
        return unpack(sum_of(self._grams[name] for name in self._held(scope)["name"]), len(self.probes))

    def _held(self, scope: Scope) -> pd.DataFrame:
        """The rows of `blocks` in a scope, under the names of the Gram matrices that are read in its space."""
        frame = select(self.blocks, scope)
        if scope.space != Space.ADAM:
            return frame
        if self.meta.get("adam") is None:
            raise ScopeError("this run has no Gram of AdamW's step; compute it again with probe.step: adam")
        return frame.assign(name=frame["name"].map(adam))

    def _theta(self, scope: Scope, aggregate: Aggregate | str) -> Theta:
        """What a metric needs of a scope: the sum of its blocks, or the blocks."""
        return self._of(list(self._held(scope)["name"]), aggregate)

    def _of(self, names: Sequence[str], aggregate: Aggregate | str) -> Theta:
        units, of_steps = len(self.probes), is_adam(names[0])
        if aggregate == Aggregate.MEAN:
            grams = self.grams(names)
            return Preconditioned(grams, np.stack([self._grams[n][-units:] for n in names])) if of_steps else grams
        total = sum_of(self._grams[name] for name in names)
        return Preconditioned(unpack(total, units), total[-units:]) if of_steps else unpack(total, units)
