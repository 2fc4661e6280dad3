"""Adam: the step that AdamW takes from a gradient, P g with P = 1 / (sqrt(v_hat) + eps), and its Gram matrices.

v_hat is the second moment, corrected for its start at zero. The step leaves out momentum and weight decay: it is what
this task's gradient adds to the next update. Not here: where moments are read (`optimizers`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interference.measurement.gram import gram
from interference.measurement.shard import ALL, Shard
from interference.measurement.spool import Spool
from mixlora.checkpoints.digests import digest, of_tensor

BETAS, EPS = (0.9, 0.999), 1e-8
"""AdamW's usual rates and eps, where no optimizer has others."""
LONG = 10**6
"""Steps after which a second moment needs no correction for its start at zero."""
COLD = 1e-3
"""v_hat, relative to the mean squared gradient that was measured, below which an entry has hardly been trained: its
gradient is more than 30 times as long as AdamW expects, and its next step far shorter than P g."""


@dataclass(frozen=True)
class Moment:
    """The second moment of one parameter.

    Attributes:
        squares: AdamW's v, float32, of the parameter's shape.
        step: steps that it is of.
        betas: AdamW's rates.
        eps: what is added to the root.
    """

    squares: Tensor
    step: int = LONG
    betas: tuple[float, float] = BETAS
    eps: float = EPS

    @property
    def corrected(self) -> Tensor:
        """[entries]: v_hat."""
        return self.squares.flatten() / (1 - self.betas[1] ** self.step)

    @property
    def scale(self) -> Tensor:
        """[entries]: P."""
        return 1 / (self.corrected.sqrt() + self.eps)


@dataclass(frozen=True)
class Moments:
    """The second moments of an optimizer.

    Attributes:
        found: {block name: its parameter's}.
        source: where they are from.
    """

    found: Mapping[str, Moment]
    source: str

    @cached_property
    def digest(self) -> str:
        """Of all that decides the step; a changed state is another measurement."""
        parts = (
            f"{name} {of_tensor(one.squares)} {one.step} {one.betas[1]!r} {one.eps!r} "
            for name, one in sorted(self.found.items())
        )
        return digest(part.encode() for part in parts)

    def meta(self) -> dict[str, Any]:
        """What a run records of them."""
        steps = {one.step for one in self.found.values()}
        return {"source": self.source, "step": max(steps), "digest": self.digest}


@dataclass
class AdamGrams:
    """The Gram matrices of gradients and AdamW's steps, <g_u, P g_v>, with the squared lengths |P g_u|^2.

    Attributes:
        moments: of the optimizer; None to estimate them as the mean of the units' squared gradients, in which every
            task counts alike.
        weights: [units], in the order of the parts: of a unit in that mean.
        budget: as in `gram`.
        shard: as in `gram`.
        estimated: {block name: [entries]}, the second moments that were estimated so far.
    """

    moments: Moments | None
    weights: Tensor
    budget: int
    shard: Shard = ALL
    estimated: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _squares: float = field(default=0.0, init=False)
    _cold: float = field(default=0.0, init=False)

    def of(
        self, spool: Spool, sizes: Sequence[int], block: str, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The Gram matrix [units, units] of a block, and the squared lengths [units] of its steps.

        Args:
            spool: where the gradients are.
            sizes: units in each part.
            block: its name.
            width: entries of its rows.
        """
        mean = self._mean_squares(spool, sizes, block, width)
        moment = Moment(mean) if self.moments is None else self.moments.found[block]
        scale = moment.scale
        if self.moments is None:
            self.estimated[block] = mean.numpy()
        else:
            squares = scale.double().square() * mean  # of the steps, by coordinate
            self._squares += float(squares.sum())
            self._cold += float(squares[moment.corrected < COLD * mean].sum())
        matrix = gram(spool, sizes, block, width, self.budget, self.shard, scale.sqrt())
        return matrix, self._lengths(spool, sizes, block, scale).numpy()

    def meta(self) -> dict[str, Any]:
        """What a run records of the step, after the last block."""
        if self.moments is None:
            return {"source": None}
        return {**self.moments.meta(), "cold": self._cold / self._squares if self._squares else 0.0}

    def _mean_squares(self, spool: Spool, sizes: Sequence[int], block: str, width: int) -> Tensor:
        """[entries]: the weighted mean of the units' squared gradients."""
        found, first = torch.zeros(width), 0
        with self.shard.together():
            for part, size in enumerate(sizes):
                if self.shard.owns(part):
                    found += self.weights[first : first + size] @ spool.read(part, block).flatten(1).square()
                first += size
        return self.shard.total(found)

    def _lengths(self, spool: Spool, sizes: Sequence[int], block: str, scale: Tensor) -> Tensor:
        found, first = torch.zeros(sum(sizes)), 0
        with self.shard.together():
            for part, size in enumerate(sizes):
                if self.shard.owns(part):
                    rows = spool.read(part, block).flatten(1)
                    found[first : first + size] = (rows * scale).square().sum(dim=1)
                first += size
        return self.shard.total(found)


def weights_of(tasks: Sequence[str]) -> Tensor:
    """[units]: weights that sum to 1, in which every task counts alike.

    Args:
        tasks: the task of every unit.
    """
    names = list(dict.fromkeys(tasks))
    codes = torch.tensor([names.index(task) for task in tasks])
    return 1 / (len(names) * torch.bincount(codes).float()[codes])
