"""Products: inner products of derived gradients, block by block, beside those that a run keeps.

Nothing here multiplies gradients or projects them as a run does (`measurement.gram`, `gradients.weight_space`), whose
mistakes it is to find. Only sketches are the run's own, as they are random.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interference.blocks import Granularity, Side, coarsen
from interference.gradients.sketch import sketched
from interference.gradients.targets import Target
from interference.gradients.weight_space import weight_block, weight_space_rows
from interference.run import Run
from interference.run.grams import adam

LEAST = 0.01
"""A block's gradient counts as at least this share of the largest block of its side in the median unit: the gradient of
a block that hardly matters is mostly rounding, and has no right digits to compare."""

Rows = Mapping[str, Tensor]
Square = NDArray[np.float64]


class Products:
    """Inner products of derived gradients: of the chosen units, then of others with these.

    Args:
        run: The run.
        targets: Its probed modules.
        chosen: Places of the chosen units.
        derived: {block name: their gradients [units, *factor shape]}.
        steps: Compare the products of AdamW's step, <g_u, P g_v>; all gradients are then given as P^(1/2) g.
    """

    def __init__(
        self, run: Run, targets: Sequence[Target], chosen: Sequence[int], derived: Rows, steps: bool = False
    ) -> None:
        self._run, self._targets, self._places, self._steps = run, targets, list(chosen), steps
        self._sides = sides_of(run, steps)
        self._stored = dict(self._names())
        self._rows = self._kept(derived)
        self._with_chosen = [self._products(self._rows, self._rows)]
        self._squares = [{name: np.diagonal(each) for name, each in self._with_chosen[0].items()}]

    def add(self, place: int, derived: Rows) -> None:
        """Take the gradient of the unit at a place of the run into account: its products with the chosen units'."""
        rows = self._kept(derived)
        self._places.append(place)
        self._with_chosen.append(self._products(rows, self._rows))
        own = self._products(rows, rows)
        self._squares.append({name: np.diagonal(each) for name, each in own.items()})

    def errors(self) -> dict[str, float]:
        """The largest error of each block.

        Returns:
            {name of a Gram matrix of the run: largest |K - K'| / sqrt(K'[u,u] K'[v,v])}, with K' the derived products;
            inf where it holds a number that is not finite, or its block is none of the targets'.
        """
        norms = {name: np.sqrt(np.concatenate([each[name] for each in self._squares])) for name in self._with_chosen[0]}
        least = least_of(norms, self._sides)
        return {
            name: self._error(name, np.maximum(norms[name], least[side])) if name in norms else math.inf
            for name, side in self._sides.items()
        }

    def _error(self, name: str, norms: NDArray[np.float64]) -> float:
        """The largest error of a block, by the norms [units] of its gradients."""
        gram, count = self._run.grams([name])[0].astype(np.float64), self._with_chosen[0][name].shape[1]
        if not np.isfinite(gram).all():
            return math.inf
        expected = np.concatenate([each[name] for each in self._with_chosen])
        squares = np.concatenate([each[name] for each in self._squares])
        off = np.abs(gram[np.ix_(self._places, self._places[:count])] - expected)
        own = np.abs(gram[self._places, self._places] - squares)
        return max(share(off, np.outer(norms, norms[:count])), share(own, norms**2))

    def _names(self) -> Iterator[tuple[str, str]]:
        """(block of a target, block of the run that it is summed into)."""
        granularity, weight = Granularity(self._run.meta["granularity"]), self._has_weight_space
        for target in self._targets:
            for block in [*target.blocks, *([weight_block(target)] if weight else [])]:
                stored = coarsen(block, granularity).name
                yield block.name, adam(stored) if self._steps else stored

    @property
    def _has_weight_space(self) -> bool:
        return Side.W in self._sides.values()

    def _kept(self, rows: Rows) -> Rows:
        """The rows of which the run keeps inner products, in double precision; sketched if the run's are."""
        size = self._run.meta.get("sketch")
        if size is not None:
            own = weight_space_rows(self._targets, rows) if self._has_weight_space else {}
            rows = sketched({**rows, **own}, size, self._run.seed)
        return {name: row.double() for name, row in rows.items()}

    def summed(self, values: Iterable[tuple[str, Square]]) -> dict[str, Square]:
        """{matrix of the run: the sum of (block of a target, value) over the blocks that it is of}."""
        found: dict[str, Square] = {}
        for name, each in values:
            stored = self._stored[name]
            found[stored] = found[stored] + each if stored in found else each
        return found

    def _products(self, left: Rows, right: Rows) -> dict[str, Square]:
        """{matrix of the run: inner products [units of left, units of right]}."""
        return self.summed(self._block_products(left, right))

    def _block_products(self, left: Rows, right: Rows) -> Iterator[tuple[str, Square]]:
        for name, row in left.items():
            yield name, (row.flatten(1) @ right[name].flatten(1).T).numpy()
        if self._has_weight_space and self._run.meta.get("sketch") is None:
            for target in self._targets:
                yield weight_block(target).name, weight_products(target, left, right).numpy()


def sides_of(run: Run, steps: bool = False) -> dict[str, str]:
    """{name of a run's Gram matrix: side of its block}; of those of AdamW's step if `steps`."""
    sides = dict(zip(run.blocks["name"], run.blocks["side"], strict=True))
    return {adam(name): side for name, side in sides.items() if side != Side.W} if steps else sides


def least_of(norms: Mapping[str, NDArray[np.float64]], sides: Mapping[str, str]) -> dict[str, float]:
    """The norm that the gradients of every side's blocks have at least; 0 where all are zero.

    Args:
        norms: {block: [units]}.
        sides: {block: its side}.
    """
    found: dict[str, float] = {}
    for side in set(sides.values()):
        own = [norm for name, norm in norms.items() if sides.get(name) == side]
        found[side] = LEAST * float(np.median(np.max(own, axis=0))) if own else 0.0
    return found


def weight_products(target: Target, left: Rows, right: Rows) -> Tensor:
    """Inner products of what a step can follow of the gradients of a weight scaling * B A.

    With P_B and P_A the projections on the columns of B and the rows of A, that is P_B G + (1 - P_B) G P_A, so that
    <G, H> becomes <P_B G, H> + <G P_A, H> - <P_B G P_A, H>. Each term is one of products [rank, rank], as
    scaling * B^T G and scaling * G A^T are the gradients of A and B.

    Args:
        target: A module with LoRA's A and B.
        left: {block name: gradients [units, *factor shape]}.
        right: The same of other units.

    Returns:
        [units of left, units of right].
    """
    block_a, block_b = (block.name for block in target.blocks)
    a, b = (tap.weight.detach().double().cpu() for tap in target.taps.values())
    inverse_a, inverse_b = (_pseudo_inverse(square) for square in (a @ a.T, b.T @ b))
    columns = torch.einsum("urd,rs,vsd->uv", left[block_a], inverse_b, right[block_a])
    rows = torch.einsum("udr,rs,vds->uv", left[block_b], inverse_a, right[block_b])
    first, second = (each[block_a] @ a.T for each in (left, right))
    both = torch.einsum("urs,rp,st,vpt->uv", first, inverse_b, inverse_a, second)
    return (columns + rows - both) / target.layer.scaling[target.adapter] ** 2


def _pseudo_inverse(square: Tensor) -> Tensor:
    """Of a symmetric matrix of factors in single precision: smaller eigenvalues are rounding."""
    return torch.linalg.pinv(square, rtol=len(square) * torch.finfo(torch.float32).eps, hermitian=True)


def share(off: NDArray[np.float64], size: NDArray[np.float64]) -> float:
    """The largest of `off` relative to `size`; a number where there should be none is infinitely wrong."""
    relative = np.divide(off, size, out=np.where(off > 0, math.inf, 0.0), where=size > 0)
    return float(relative.max())
