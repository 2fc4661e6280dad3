"""Selections: which factors (MixLoRA) or rank directions (LoRA) examples use, and what that says of their tasks.

Numbers about factors: how evenly they are used, how much a choice tells about the task, what two tasks share.

Not here: numbers about examples, as distances and the map (`neighbours`), and the model that selects (`observer`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations as orders
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata

from interference.errors import MeasurementError, ScopeError
from interference.factors.shuffles import orders as shuffled_orders
from interference.statistics.groups import Cells, Codes, codes_of
from interference.statistics.significance import benjamini_hochberg

Array = NDArray[np.float64]

PERMUTATIONS = 1000
_TOGETHER = 50  # permutations whose tables are made at once
_ROUNDING = 1e-9  # bits or correlations that differ by less are equal


@dataclass(frozen=True)
class Selections:
    """What every example of a sample used of an adapter.

    Attributes:
        tasks: the task of every example.
        blocks: one row per block: name, component, layer, module, group, side, factors (the number of them).
        values: {block name: [examples, r]}: the indices of the chosen factors, by rank, for a mixture; the mean of A x
            over the prompt's tokens for a LoRA.
        mixture: whether factors were chosen (MixLoRA), or every rank direction is active to some degree (LoRA).
        groups: [examples], the same number for those that are not independent; None if they are taken as independent.
    """

    tasks: list[str]
    blocks: pd.DataFrame
    values: Mapping[str, NDArray]
    mixture: bool
    groups: Codes | None = None

    @property
    def names(self) -> list[str]:
        """The tasks, in order of first appearance."""
        return list(dict.fromkeys(self.tasks))

    @property
    def labels(self) -> NDArray[np.intp]:
        """Every example's task as its place in `names`."""
        place = {name: k for k, name in enumerate(self.names)}
        return np.array([place[task] for task in self.tasks])

    def of(self, rows: NDArray[np.intp]) -> "Selections":
        """What some of the examples used."""
        values = {name: value[rows] for name, value in self.values.items()}
        groups = None if self.groups is None else self.groups[rows]
        return Selections([self.tasks[row] for row in rows], self.blocks, values, self.mixture, groups)

    def parts(self) -> Iterator[tuple[str, NDArray]]:
        """Every block's name and features [examples, factors], block by block; see `features`."""
        for name, factors in zip(self.blocks["name"], self.blocks["factors"], strict=True):
            yield name, multi_hot(self.values[name], factors) if self.mixture else standardised(self.values[name])


def multi_hot(chosen: NDArray, factors: int) -> NDArray[np.float32]:
    """[examples, factors]: 1 where an example's row of `chosen` [examples, r] names the factor, else 0."""
    hot = np.zeros((len(chosen), factors), np.float32)
    np.put_along_axis(hot, chosen.astype(np.intp), 1, axis=1)
    return hot


def standardised(values: NDArray) -> NDArray[np.float64]:
    """Columns of mean 0 and variance 1 over the examples; a column that does not vary becomes 0."""
    centred = values - values.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    still = spread <= 1e-6 * np.abs(values).max(axis=0, initial=0)
    return np.where(still, 0.0, centred / np.where(still, 1.0, spread))


def features(selections: Selections) -> NDArray:
    """[examples, sum of the blocks' factors]: multi-hots for a mixture, standardised activations for a LoRA."""
    return np.concatenate([part for _, part in selections.parts()], axis=1)


def shares(selections: Selections) -> dict[str, Array]:
    """{block: [factors]}, how use is distributed over the factors; sums to 1.

    For a mixture, a factor's share of all choices. For a LoRA, a rank direction's share of the squared activation; it
    depends on how the product BA is split. All are 0 if there is no activation.
    """
    found = {}
    for name, factors in zip(selections.blocks["name"], selections.blocks["factors"], strict=True):
        values = selections.values[name]
        used = np.bincount(values.ravel(), minlength=factors) if selections.mixture else (values**2).sum(axis=0)
        found[name] = used / max(used.sum(dtype=np.float64), np.finfo(np.float64).tiny)
    return found


def usage(selections: Selections) -> pd.DataFrame:
    """How concentrated the use of each block's factors is, one row per block.

    Columns after those of the block: factors, entropy (of `shares`, bits), evenness (entropy / log2 factors; 1 is even
    use), effective (2 ** entropy: the number of evenly used factors with this entropy), largest (share of the most used
    factor), dead (factors that no example used).
    """
    rows = []
    for share in shares(selections).values():
        bits = float(-_xlogx(share).sum())
        evenness = bits / np.log2(len(share)) if len(share) > 1 else 1.0
        rows.append((len(share), bits, evenness, 2**bits, float(share.max()), int((share == 0).sum())))
    numbers = pd.DataFrame(rows, columns=["factors", "entropy", "evenness", "effective", "largest", "dead"])
    return pd.concat([_places(selections), numbers], axis=1)


def usage_by_layer(selections: Selections) -> pd.DataFrame:
    """`usage` by layer: number of blocks, factors and dead factors, mean evenness and mean largest share."""
    grouped = usage(selections).groupby(["component", "layer"], sort=False, dropna=False)
    summed = grouped.agg(blocks=("name", "size"), factors=("factors", "sum"), dead=("dead", "sum"))
    means = grouped.agg(evenness=("evenness", "mean"), largest=("largest", "mean"))
    return pd.concat([summed, means], axis=1).reset_index()


def information(selections: Selections, permutations: int = PERMUTATIONS, seed: int = 0) -> pd.DataFrame:
    """Mutual information of task and chosen factor, one row per block.

    I(T; F), in bits, for a random example and one of its chosen factors at random: 0 if all tasks use factors alike,
    H(T) if a factor identifies the task. A finite sample never shows 0, and the r choices of an example are not
    independent. The level of chance is therefore that of the same selections under permuted task labels, those of a
    group together (`shuffles`).

    Columns after those of the block: bits; null and null_high (mean and 95% quantile under permutation); corrected
    (bits - null, which is below H(T) even if a factor identifies the task); p (one-sided) and q (p adjusted over the
    blocks, Benjamini and Hochberg).

    Raises:
        ScopeError: if no factors are chosen (a LoRA), or there is only one task.
    """
    if not selections.mixture:
        raise ScopeError("a LoRA uses all its rank directions and chooses none; information is for MixLoRA adapters")
    check_tasks(selections.names)
    hot, random = features(selections).astype(np.float32), np.random.default_rng(seed)
    ends = np.cumsum(selections.blocks["factors"].to_numpy(int))
    count, tasks = len(hot), len(selections.names)
    one_hot = np.eye(tasks, dtype=np.float32)[selections.labels]
    bits, null = _bits(one_hot[None], hot, ends)[0], np.empty((permutations, len(ends)))
    for start in range(0, permutations, _TOGETHER):
        rows = min(_TOGETHER, permutations - start)
        shuffled = shuffled_orders(count, selections.groups, rows, random)
        null[start : start + rows] = _bits(one_hot[shuffled], hot, ends)
    p = (1 + (null >= bits - _ROUNDING).sum(axis=0)) / (1 + permutations)
    mean = null.mean(axis=0)
    numbers = {"bits": bits, "null": mean, "null_high": np.quantile(null, 0.95, axis=0), "corrected": bits - mean}
    return _places(selections).assign(**numbers, p=p, q=benjamini_hochberg(p))


def overlap(selections: Selections) -> pd.DataFrame:
    """What two examples of different groups, one of each task, have in common [tasks, tasks], mean over blocks.

    For a mixture, the expected share of the r chosen factors that both chose: 1 if they always choose the same, r / E
    if they choose at random. For a LoRA, the expected cosine of their standardised activations. NaN for two tasks
    whose examples are all of one group, as a task with itself if it has one example.
    """
    names = selections.names
    one_hot = np.eye(len(names))[selections.labels]
    sums, task, together = _cells(selections)
    sizes = np.asarray(sums.sum(axis=1)).ravel()
    of_task = np.eye(len(names))[task]

    def within(products: Array) -> Array:
        """[tasks, tasks]: the sum over cells of the same group."""
        return of_task.T @ np.where(together, products, 0) @ of_task

    counts = one_hot.sum(axis=0)
    pairs = np.outer(counts, counts) - within(np.outer(sizes, sizes))
    total = np.zeros_like(pairs)
    for _, part in selections.parts():
        rows = unit_rows(part)  # of a multi-hot: the product of two is the share in common
        summed, own = one_hot.T @ rows, sums @ rows
        total += summed @ summed.T - within(own @ own.T)
    with np.errstate(invalid="ignore"):
        values = np.where(pairs > 0, total / pairs / len(selections.blocks), np.nan)
    return pd.DataFrame(values, pd.Index(names, name="task"), pd.Index(names, name="other"))


@dataclass(frozen=True)
class Correlation:
    """How two matrices of the same tasks agree.

    Attributes:
        spearman: rank correlation over the pairs of different tasks.
        p: share of task permutations of one matrix whose correlation is at least as far from 0.
        tasks: that both matrices have.
        exact: whether all permutations were tried.
    """

    spearman: float
    p: float
    tasks: int
    exact: bool


def correlate(
    first: pd.DataFrame, second: pd.DataFrame, permutations: int = PERMUTATIONS, seed: int = 0
) -> Correlation:
    """Spearman correlation of two [tasks, tasks] matrices off their diagonals, with a permutation p-value.

    Pairs that share a task are not independent, so tasks are permuted, rows and columns together (Mantel 1967). All
    orders are tried if there are at most `permutations` of them.

    Raises:
        ScopeError: if the matrices share fewer than 3 tasks.
        MeasurementError: if a value is not finite, or one matrix is constant off its diagonal.
    """
    names = [task for task in first.index if task in second.index]
    count = len(names)
    if count < 3:
        raise ScopeError(f"{count} tasks are in both matrices, but a correlation over pairs of tasks needs 3")
    a, b = (_ranks(matrix.loc[names, names].to_numpy(float), names) for matrix in (first, second))
    off = ~np.eye(count, dtype=bool)
    exact = factorial(count) <= permutations
    random = np.random.default_rng(seed)
    tried = orders(range(count)) if exact else (random.permutation(count) for _ in range(permutations))
    scale = np.sqrt((a[off] ** 2).sum() * (b[off] ** 2).sum())
    found = float((a[off] * b[off]).sum() / scale)
    null = np.array([(a[np.ix_(order, order)][off] * b[off]).sum() / scale for order in map(list, tried)])
    extreme = int((np.abs(null) >= abs(found) - _ROUNDING).sum())
    p = extreme / len(null) if exact else (1 + extreme) / (1 + len(null))
    return Correlation(found, p, count, exact)


def check_tasks(names: Sequence[str]) -> None:
    """Raise a ScopeError if there are fewer than two tasks."""
    if len(set(names)) < 2:
        raise ScopeError(f"there is only task {names[0]!r}; give at least 2 tasks to compare")


def unit_rows(rows: NDArray) -> Array:
    """Rows of length 1; a row of zeros stays."""
    rows = rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _cells(selections: Selections) -> tuple[Any, NDArray[np.intp], NDArray[np.bool_]]:
    """The groups of every task: a matrix [cells, examples] that sums them, their tasks, which are of one group."""
    labels, groups = selections.labels, selections.groups
    order = np.argsort(labels, kind="stable")
    group = np.arange(len(labels)) if groups is None else codes_of(groups.tolist())
    cells = Cells.of(np.bincount(labels), group[order])
    of_example = np.empty_like(cells.of_unit)
    of_example[order] = cells.of_unit
    sums = sparse.csr_array((np.ones(len(order)), (of_example, np.arange(len(order)))))
    task = np.repeat(np.arange(len(cells.counts)), cells.counts)
    return sums, task, cells.label[:, None] == cells.label


def _places(selections: Selections) -> pd.DataFrame:
    return selections.blocks[["name", "component", "layer", "module", "side"]].reset_index(drop=True)


def _xlogx(shares: NDArray) -> Array:
    values = np.asarray(shares, dtype=np.float64)
    return values * np.log2(values, where=values > 0, out=np.zeros_like(values))


def _bits(one_hot: NDArray, hot: NDArray, ends: NDArray) -> Array:
    """Mutual information [labellings, blocks] of the labellings [labellings, examples, tasks] with the multi-hots."""
    labellings, count, tasks = one_hot.shape
    tables = one_hot.transpose(0, 2, 1).reshape(-1, count) @ hot  # counts, whole numbers below 2^24
    tables = tables.reshape(labellings, tasks, -1).astype(np.float64)
    starts = np.concatenate([[0], ends[:-1]])

    def blockwise(values: Array) -> Array:
        return np.add.reduceat(values, starts, axis=-1)

    choices = blockwise(tables.sum(axis=1))  # [labellings, blocks], of all examples
    joint = blockwise(_xlogx(tables).sum(axis=1)) / choices
    factor = blockwise(_xlogx(tables.sum(axis=1))) / choices
    task = _xlogx(blockwise(tables)).sum(axis=1) / choices
    return joint - factor - task + np.log2(choices)


def _ranks(matrix: Array, names: Sequence[str]) -> Array:
    """Centred ranks of the values off the diagonal; the diagonal is 0."""
    off = ~np.eye(len(matrix), dtype=bool)
    if not np.isfinite(matrix[off]).all():
        row, column = np.argwhere(~np.isfinite(matrix) & off)[0]
        raise MeasurementError(
            f"the value of {names[row]!r} and {names[column]!r} is {matrix[row, column]}; correlate without that task"
        )
    ranks = rankdata(matrix[off])
    if ranks.std() == 0:
        raise MeasurementError("a matrix has one value for all pairs of tasks, which correlates with nothing")
    result = np.zeros_like(matrix)
    result[off] = ranks - ranks.mean()
    return result
