"""95% intervals of shares: bootstraps of sums over units, and closed forms where a bootstrap is too narrow.

Not here: what the units are and what is summed (`metrics`).
"""

from collections.abc import Mapping
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
        whole: index of the denominator's column, which is 0 or 1: the units that the share is about.
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
    """Units with their columns, equal units as one row with a count: few rows, whatever the number of units.

    Resampling n units is then a multinomial draw over the distinct rows, and no result depends on the units' order.
    """

    def __init__(self, columns: Array) -> None:
        self.rows, self.counts = np.unique(columns, axis=0, return_counts=True)

    def sums(self) -> Array:
        """Each column's sum over the units [columns]."""
        return self.counts @ self.rows

    def resampled(self, draws: int, seed: int | list[int]) -> Array:
        """Each column's sum over as many units drawn with replacement, for each of `draws` samples [draws, columns].

        Raises:
            ConfigError: if `draws` is below 1.
        """
        if draws < 1:
            raise ConfigError(f"draws is {draws}, but an interval needs at least 1; 1000 is usual.")
        rng, units = np.random.default_rng(seed), self.counts.sum()
        sums, size = np.empty((draws, self.rows.shape[1])), max(1, _WEIGHTS_AT_ONCE // len(self.rows))
        for start in range(0, draws, size):
            weights = rng.multinomial(units, self.counts / units, size=min(size, draws - start))
            sums[start : start + size] = weights @ self.rows
        return sums


def estimates(sample: Sample, shares: Mapping[str, Share], draws: int, seed: int) -> dict[str, Estimate]:
    """Every share with its interval: Wilson's, widened to the bootstrap's percentiles unless all units are 0 or 1.

    For units that are 0 or 1 and mostly equal, percentiles are too narrow: for 30 units that are 1 with probability
    0.98 they contain the truth in 45% of samples, Wilson's interval in 98%.
    """
    sums, resampled = sample.sums(), sample.resampled(draws, seed)
    found = {}
    for name, share in shares.items():
        bounds = [wilson(sample, share)]
        if not np.isin(sample.rows[:, share.part], (0, 1)).all():
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

    For units that are 0 or 1 it is Wilson's (1927). Units between 0 and 1 vary less than those with the same mean, so n
    is divided by the ratio of the two variances. Both variances include z^2 / 2 added units of 0 and as many of 1, on
    which Wilson's interval is centred.
    """
    part, n = sample.rows[:, share.part], float(sample.counts @ sample.rows[:, share.whole])
    if n == 0:
        return np.nan, np.nan
    total, squares = sample.counts @ part, sample.counts @ part**2
    padded = n + _Z**2
    centre = (total + _Z**2 / 2) / padded
    variance = (squares + _Z**2 / 2) / padded - centre**2
    mean, effective = total / n, n * centre * (1 - centre) / variance
    squeeze = 1 + _Z**2 / effective
    middle = (mean + _Z**2 / (2 * effective)) / squeeze
    half = _Z / squeeze * np.sqrt(mean * (1 - mean) / effective + _Z**2 / (4 * effective**2))
    low, high = share.shape(np.clip([middle - half, middle + half], 0, 1))
    return float(low), float(high)


def adjusted(paired: Sample, first: Share, second: Share) -> tuple[float, float]:
    """Bonett and Price's (2012) interval of a paired difference: normal, with a unit of +1 and one of -1 added.

    It has a width even if no unit differs, since the next one might. Both shares must be about the same units.
    """
    change = paired.rows[:, second.part] - paired.rows[:, first.part]
    n = float(paired.counts @ paired.rows[:, first.whole])
    if n == 0:
        return np.nan, np.nan
    middle = paired.counts @ change / (n + 2)
    half = _Z * np.sqrt(((paired.counts @ change**2 + 2) / (n + 2) - middle**2) / (n + 2))
    low, high = first.scale * np.clip([middle - half, middle + half], -1, 1)
    return float(low), float(high)


def summed(parts: list[Estimate], totals: Array) -> Estimate:
    """The sum of independent estimates, given the sum's draws [draws].

    Its interval is the draws', widened to one whose ends are as far from the sum as the root of the sum of the squared
    distances of the parts' ends.
    """
    value = sum(part.value for part in parts)
    low = value - np.sqrt(sum((part.value - part.low) ** 2 for part in parts))
    high = value + np.sqrt(sum((part.high - part.value) ** 2 for part in parts))
    return around(value, percentiles(totals), (float(low), float(high)))
