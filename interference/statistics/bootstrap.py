"""Bootstrap: weights that draw the units of a scope again, and pair means under them, corrected.

The bootstrap draws the units of every task again, a thousand times at once, as weights under the sums of `pairs.py`.
`resamples.py` shares them among estimands, and `uncertainty.py` makes intervals and verdicts of what comes out.

Why it is corrected. A plain bootstrap of a mean over pairs of units counts the scatter of single pairs up to three
times (once for itself, once through the resampled row means and once through the column means), so that where noise
dominates its intervals are up to sqrt(3) too wide; and with 20 units it misses the factor n / (n - 1) and Student's t.
Here the resamples of every pair mean are therefore centred on the value measured and scaled to the standard error of
the two-way analysis of variance (`significance.pair_mean_variance`), times t / z at its degrees of freedom. Ratios and
cosines are functions of those corrected pair means; intervals are the percentiles of the result.

Units that share a group are drawn together, in all tasks that have one of it, and the analysis of variance is of groups
(`significance.py`), so that everything here holds of groups as it does of units. Copies of one example are a group.

What is left. Percentiles follow a skewed law only half-way. Where gradient lengths scatter so widely that a task has
less than a third as many effective units as units (`carriers.py`), the interval of its own Delta is studentised
(bootstrap-t), which follows the skewness; where they are fewer than 16 besides, Delta's intervals are withheld in its
row. In a row without signal the interval of a ratio of
means covers nearly always; an interval of a mean of ratios has no coverage to promise, since that mean need not exist.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from interference.errors import ConfigError
from interference.statistics.groups import Cells
from interference.statistics.layout import Array, Layout, Pairs
from interference.statistics.pairs import Kernel, pair_means
from interference.statistics.significance import pair_mean_variance

TRIES = 20
"""How often a resample that leaves a task fewer than two groups is drawn again."""


def bootstrap_weights(
    tasks: Sequence[str], replicates: int = 1000, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> NDArray[np.float64]:
    """How often each unit is drawn in each resample: multinomial counts within every task.

    Args:
        tasks: The task of every unit.
        replicates: Resamples, at least 2.
        seed: Seed of the draws.
        groups: A label of every unit. Whole groups are drawn, and tasks that share groups draw them together. None
            where all units are independent. A resample with fewer than two groups of a task is drawn again, up to
            `TRIES` times; then that task counts as measured.

    Returns:
        [replicates, units], counts.

    Raises:
        ConfigError: If there are fewer than 2 replicates.
        ScopeError: If the labels are not as many as the units, or a task has a single unit or group.

    Example:
        >>> bootstrap_weights(["a", "a", "a"], replicates=4).sum(axis=1).tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    layout = Layout.of(tasks, groups)
    weights = np.empty((replicates, len(tasks)))
    weights[:, layout.order] = drawn_units(layout, replicates, seed)
    return weights


def drawn_units(layout: Layout, replicates: int, seed: int) -> NDArray[np.float64]:
    """`bootstrap_weights` of grouped units, which are not to be written to.

    Args:
        layout: The tasks and groups of the units.
        replicates: Resamples.
        seed: Seed of the draws.

    Returns:
        [replicates, units], counts.

    Raises:
        ConfigError: If there are fewer than 2 replicates.
    """
    if replicates < 2:
        raise ConfigError(f"replicates is {replicates}, but a bootstrap needs at least 2 (1000 is usual)")
    groups = None if layout.groups is None else tuple(layout.groups.tolist())
    return _drawn(tuple(layout.counts.tolist()), groups, replicates, seed)


@lru_cache(maxsize=1)  # the tables of a run draw the same units again and again
def _drawn(counts: tuple[int, ...], groups: tuple[int, ...] | None, replicates: int, seed: int) -> NDArray[np.float64]:
    units = sum(counts)
    cells = Cells.of(counts, np.arange(units) if groups is None else np.array(groups))
    task, rng = np.repeat(np.arange(len(counts)), counts), np.random.default_rng(seed)
    weights = np.empty((replicates, units))
    for family in cells.families():
        of_family = np.isin(task, family)
        labels = cells.label[cells.of_unit[of_family]]
        names, place = np.unique(labels, return_inverse=True)
        held = np.stack([np.isin(names, cells.label[cells.of_task(one)]) for one in family])
        times = _times(held, replicates, rng)
        weights[:, of_family] = times[:, place]
        for one, short in zip(family, _short(times, held).T, strict=True):
            weights[np.ix_(short, task == one)] = 1
    weights.flags.writeable = False
    return weights


def _times(held: NDArray[np.bool_], replicates: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """[replicates, groups]: how often each group of a family is drawn, drawn again where a task is short of them."""
    count = held.shape[1]
    shares = np.full(count, 1 / count)
    times = rng.multinomial(count, shares, size=replicates)
    for _ in range(TRIES):
        short = _short(times, held).any(axis=1)
        if not short.any():
            break
        times[short] = rng.multinomial(count, shares, size=short.sum())
    return times


def _short(times: NDArray[np.intp], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[replicates, tasks]: whether fewer than two of a task's groups were drawn, which leaves it no pair."""
    found: NDArray[np.bool_] = (times > 0).astype(np.float32) @ held.T.astype(np.float32) < 2
    return found


@dataclass(frozen=True)
class PairMeans:
    """Pair means of one kernel and their error, corrected as the head of this file says.

    Attributes:
        value: [i, j], as measured.
        variance: [i, j], of the value under a new draw of units.
        degrees: [i, j], Student's degrees of freedom of that variance.
        scale: [i, j], what the plain resamples' deviations were multiplied by.
        draws: [replicates, i, j], the corrected resamples.
    """

    value: Array
    variance: Array
    degrees: Array
    scale: Array
    draws: Array


def resample_pair_means(kernel: Kernel, weights: Array, layout: Layout, pairs: Pairs, level: float = 0.95) -> PairMeans:
    """Pair means with corrected resamples; `weights` [replicates, units] grouped, `level` sets the t / z factor."""
    value = pair_means(kernel, np.ones((1, weights.shape[1])), layout, pairs)[0]
    variance, degrees = pair_mean_variance(kernel, layout, pairs)
    draws = pair_means(kernel.astype(weights.dtype.type), weights, layout, pairs)
    defined = ~np.isnan(draws)
    count = np.maximum(defined.sum(axis=0), 1)
    draws -= np.where(defined, draws, 0).sum(axis=0) / count
    spread = np.sqrt((np.where(defined, draws, 0) ** 2).sum(axis=0) / count)
    tail = (1 + level) / 2
    wanted = np.sqrt(variance) * stats.t.ppf(tail, degrees) / stats.norm.ppf(tail)
    scale = np.divide(wanted, spread, out=np.where(np.isnan(wanted), np.nan, 0), where=spread > 0)
    draws *= scale
    draws += value
    return PairMeans(value, variance, degrees, scale, draws)


@dataclass(frozen=True)
class Studentised:
    """A task's own Delta with its standard error, and resamples of Student's t.

    Attributes:
        value: as measured.
        error: of the value, to first order.
        t: [replicates], a resample's deviation from the value relative to its own error; NaN where it has none.
    """

    value: float
    error: float
    t: Array


def studentised(kernel: Kernel, weights: Array, layout: Layout, task: int) -> Studentised:
    """Own Delta under resamples, each relative to its own error: t follows the skewness of a heavy-tailed law.

    With S[a, b] the sum of the symmetrised kernel over the units of groups a and b, n their units and w how often a
    group is drawn, Delta is sum_{a != b} w_a w_b S[a, b] / D, D = sum_{a != b} w_a w_b n_a n_b, and its variance to
    first order (a U-statistic's) 4 sum_a w_a r_a^2 / D^2, r_a = sum_{b != a} w_b (S[a, b] - Delta n_a n_b).

    Args:
        kernel: Over grouped units.
        weights: [replicates, units], grouped.
        layout: The tasks and groups of the units.
        task: Its place.

    Returns:
        The value, its error, and [replicates] of Student's t.
    """
    own, cells = layout.slices[task], layout.cells
    sizes = cells.sizes[cells.of_task(task)].astype(np.float64)
    starts = cells.of_unit[own] - cells.starts[task]
    summed = np.zeros((len(sizes), len(sizes)))
    np.add.at(summed, (starts[:, None], starts), (kernel.values[own, own] + kernel.values[own, own].T) / 2)
    np.fill_diagonal(summed, 0)

    def estimates(drawn: Array) -> tuple[Array, Array]:
        units = drawn * sizes
        effect = drawn @ summed
        pairs = units.sum(axis=1, keepdims=True) - units  # [replicates, a]: units outside of a
        count = (units * pairs).sum(axis=1)
        count[count == 0] = np.nan
        value = (drawn * effect).sum(axis=1) / count
        scatter = effect - value[:, None] * sizes * pairs
        return value, 2 * np.sqrt((drawn * scatter**2).sum(axis=1)) / count

    (value,), (error,) = estimates(np.ones((1, len(sizes))))
    values, errors = estimates(weights[:, cells.first[cells.of_task(task)]].astype(np.float64))
    errors[errors == 0] = np.nan
    return Studentised(float(value), float(error), (values - value) / errors)


def check_level(level: float) -> None:
    """Raise a ConfigError for a level that is not a share."""
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}, but must lie between 0 and 1 (0.95 is usual)")
