"""95% intervals of shares: bootstraps of sums over groups of units, and closed forms where a bootstrap is too narrow.

Not here: what the units are, what is summed, and which units are of one group (`metrics`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mixlora.common.errors import ConfigError

Array = NDArray[np.float64]

LEVEL = 0.95
_Z = 1.959963984540054
"""The quantile of the normal distribution that leaves half of 1 - LEVEL above it."""
_WEIGHTS_AT_ONCE = 2**22
_NONE = 1e-12
"""A sum of squares below this is rounding."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95% interval; all three are NaN if the value is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """The sum of one column over the sum of another, times a scale.

    Attributes:
        part: index of the numerator's column: between 0 and 1 in each unit, and 0 where the other column is 0.
        whole: index of the denominator's column, which is 0 or 1 in each unit: the units that the share is about.
        scale: factor of the share.
    """

    part: int
    whole: int
    scale: float = 1.0
    linear: ClassVar[bool] = True

    def of(self, sums: Array) -> Array:
        """The value from sums [..., columns]; NaN where the whole is 0."""
        part, whole = sums[..., self.part], sums[..., self.whole]
        return self.shape(np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0))

    def shape(self, share: Array) -> Array:
        """The value from the plain share; it increases with the share."""
        return self.scale * share


@dataclass(frozen=True)
class Dice(Share):
    """F1 as 2 J / (1 + J) of a share J, the intersection of two sets over their union."""

    linear: ClassVar[bool] = False

    def shape(self, share: Array) -> Array:
        """F1 of the plain share."""
        return self.scale * 2 * share / (1 + share)


class Sample:
    """Groups of units with the sums of their columns, equal groups as one row with a count: few rows for many units.

    Groups are independent of each other, the units of a group need not be. Resampling n groups is a multinomial draw
    over the distinct rows, and no result depends on the order of units or groups.

    Args:
        columns: what is summed [units, columns].
        groups: each unit's group [units]; None if every unit is a group of its own.

    Attributes:
        rows: the distinct sums of groups [rows, columns].
        counts: how many groups have them [rows].
        units: the same units as a sample of groups of one.
    """

    def __init__(self, columns: Array, groups: NDArray[np.int64] | None = None) -> None:
        sums = columns if groups is None else _summed_within(columns, groups)
        self.rows, self.counts = np.unique(sums, axis=0, return_counts=True)
        self.units = self if groups is None else Sample(columns)

    def sums(self) -> Array:
        """Each column's sum over all groups [columns]."""
        return self.counts @ self.rows

    def resampled(self, draws: int, seed: int | list[int]) -> Array:
        """Each column's sum over as many groups drawn with replacement, for each of `draws` samples [draws, columns].

        Raises:
            ConfigError: if `draws` is below 1.
        """
        if draws < 1:
            raise ConfigError(f"draws is {draws}, but an interval needs at least 1; 1000 is usual.")
        rng, groups = np.random.default_rng(seed), self.counts.sum()
        sums, size = np.empty((draws, self.rows.shape[1])), max(1, _WEIGHTS_AT_ONCE // len(self.rows))
        for start in range(0, draws, size):
            weights = rng.multinomial(groups, self.counts / groups, size=min(size, draws - start))
            sums[start : start + size] = weights @ self.rows
        return sums


def _summed_within(columns: Array, groups: NDArray[np.int64]) -> Array:
    """The sums of columns within each group [groups, columns], the same to the bit for any order of the units."""
    order = np.lexsort((*columns.T, groups))
    starts = np.unique(groups[order], return_index=True)[1]
    return np.add.reduceat(columns[order], starts, axis=0)


def estimates(sample: Sample, shares: Mapping[str, Share], draws: int, seed: int) -> dict[str, Estimate]:
    """Every share with its interval: Wilson's, widened to the bootstrap's percentiles unless all groups are 0 or 1.

    For units that are 0 or 1 and mostly equal, percentiles are too narrow: for 30 units that are 1 with probability
    0.98 they contain the truth in 45% of samples, Wilson's interval in 98%.
    """
    sums, resampled = sample.sums(), sample.resampled(draws, seed)
    found = {}
    for name, share in shares.items():
        bounds = [wilson(sample, share)]
        if not np.isin(sample.rows[:, [share.part, share.whole]], (0, 1)).all():
            bounds.append(percentiles(share.of(resampled)))
        found[name] = around(float(share.of(sums)), *bounds)
    return found


def differences(paired: Sample, shares: Mapping[str, Share], draws: int, seed: int) -> dict[str, Estimate]:
    """Every share in the second half of the columns minus the same share in the first half, with its interval.

    Both sides are resampled together. If a share is about the same units on both sides, its bootstrap interval is
    widened to the one of `adjusted`; others (precision, F1) have the bootstrap's.
    """
    width = paired.rows.shape[1] // 2
    sums, resampled = paired.sums(), paired.resampled(draws, seed)
    found = {}
    for name, first in shares.items():
        second = replace(first, part=first.part + width, whole=first.whole + width)
        bounds = [percentiles(second.of(resampled) - first.of(resampled))]
        if first.linear and np.array_equal(paired.rows[:, first.whole], paired.rows[:, second.whole]):
            bounds.append(adjusted(paired, first, second))
        found[name] = around(float(second.of(sums) - first.of(sums)), *bounds)
    return found


def around(value: float, *bounds: tuple[float, float]) -> Estimate:
    """The value with the smallest interval that contains all of the bounds and the value."""
    if np.isnan(value):
        return Estimate(value, value, value)
    ends = [end for pair in bounds for end in pair if not np.isnan(end)] + [value]
    return Estimate(value, min(ends), max(ends))


def percentiles(draws: Array) -> tuple[float, float]:
    """The interval of the middle 95% of the draws that are not NaN; NaN if all are."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="weibull")
    return float(low), float(high)


def wilson(sample: Sample, share: Share) -> tuple[float, float]:
    """Wilson's interval of a share.

    For independent units that are 0 or 1 it is Wilson's (1927). In general n is divided by the ratio of the mean's
    variance (`padded`, the groups being independent) to that of such units with the same mean. Both variances include
    z^2 / 2 added groups of 0 and as many of 1, on which Wilson's interval is centred.
    """
    part, n = sample.rows[:, share.part], float(sample.counts @ sample.rows[:, share.whole])
    if n == 0:
        return np.nan, np.nan
    centre, variance, _ = padded(sample, lambda rows: rows[:, share.part], share.whole, low=0, copies=_Z**2 / 2)
    mean, effective = sample.counts @ part / n, n * centre * (1 - centre) / variance
    squeeze = 1 + _Z**2 / effective
    middle = (mean + _Z**2 / (2 * effective)) / squeeze
    half = _Z / squeeze * np.sqrt(mean * (1 - mean) / effective + _Z**2 / (4 * effective**2))
    low, high = share.shape(np.clip([middle - half, middle + half], 0, 1))
    return float(low), float(high)


def adjusted(paired: Sample, first: Share, second: Share) -> tuple[float, float]:
    """Bonett and Price's (2012) interval of a paired difference: normal, with a group of +1 and one of -1 added.

    It has a width even if no unit differs, since the next one might. Both shares must be about the same units.
    """
    if paired.counts @ paired.rows[:, first.whole] == 0:
        return np.nan, np.nan
    middle, variance, n = padded(
        paired, lambda rows: rows[:, second.part] - rows[:, first.part], first.whole, low=-1, copies=1
    )
    half = _Z * np.sqrt(variance / n)
    low, high = first.scale * np.clip([middle - half, middle + half], -1, 1)
    return float(low), float(high)


def padded(
    sample: Sample, values: Callable[[Array], Array], whole: int, low: float, copies: float
) -> tuple[float, float, float]:
    """The mean of units with groups added, the variance of one unit that makes the mean's if divided by n, and n.

    The mean is m = sum p / n over groups with sums p of their units and w units, n = sum w. Its cluster-robust variance
    is sum (p - m w)^2 / n^2; n times that is returned, the plain variance if every group is one unit.

    Args:
        sample: the groups.
        values: each group's sum p, from its row.
        whole: index of the column of w.
        low: the value of the units of an added group of the first kind; that of the other kind is 1.
        copies: how many groups of each kind are added, each of `added_size` units.
    """
    counts, part, units = sample.counts, values(sample.rows), sample.rows[:, whole]
    size = added_size(sample, values, whole)
    n = counts @ units + 2 * copies * size
    mean = (counts @ part + copies * size * (1 + low)) / n
    squares = counts @ part**2 + copies * size**2 * (1 + low**2)
    # what groups of several units add to sum w^2 and to sum p w: 0 if every group is one unit
    sizes = counts @ (units * (units - 1)) + 2 * copies * size * (size - 1)
    cross = counts @ (part * (units - 1)) + copies * size * (size - 1) * (1 + low)
    return float(mean), float(squares / n - mean**2 + (mean**2 * sizes - 2 * mean * cross) / n), float(n)


def added_size(sample: Sample, values: Callable[[Array], Array], whole: int) -> float:
    """The units of an added group: between what the sample says of their dependence and the most that it can be.

    The first is the design effect, how many dependent units are worth one independent unit; the most is the size of the
    group that an average unit is in, sum w^2 / sum w. Few groups, and groups that are nearly all alike, tell the design
    effect badly: with it alone intervals of 3 to 5 groups, or of shares near 1, are too narrow, with the most too wide.
    The size is their geometric mean, or the most where all units are in one group or none differs from the mean.
    """
    units = sample.rows[:, whole]
    largest = sample.counts @ units**2 / (sample.counts @ units)
    together, apart = (_variance(one, values(one.rows), one.rows[:, whole]) for one in (sample, sample.units))
    known = not np.isnan(together) and apart > _NONE
    return float(np.sqrt(largest * np.clip(together / apart, 1, largest)) if known else largest)


def _variance(sample: Sample, part: Array, whole: Array) -> float:
    """The unbiased variance of the groups' deviations from the mean of all units, summed over groups; NaN of one."""
    groups = sample.counts @ (whole > 0)
    mean = sample.counts @ part / (sample.counts @ whole)
    squares = float(sample.counts @ (part - mean * whole) ** 2)
    return float(squares * groups / (groups - 1)) if groups > 1 else np.nan


def summed(parts: list[Estimate], totals: Array) -> Estimate:
    """The sum of independent estimates, given the sum's draws [draws].

    Its interval is the draws', widened to one whose ends are as far from the sum as the root of the sum of the squared
    distances of the parts' ends.
    """
    value = sum(part.value for part in parts)
    low = value - np.sqrt(sum((part.value - part.low) ** 2 for part in parts))
    high = value + np.sqrt(sum((part.high - part.value) ** 2 for part in parts))
    return around(value, percentiles(totals), (float(low), float(high)))
