"""Paired comparisons between arms: differences by seed, their interval, and p values corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mergenet_core.records.record import Record

LEVEL = 0.05
"""The chance of a false claim in a report in which no arm differs."""


class Difference(Record):
    """Paired differences between two arms, in the metric's own unit, seed by seed."""

    to: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    low: float | None
    """Lower end of the 95 % t interval of the mean; null for a single seed. Not corrected for other comparisons."""
    high: float | None
    """Upper end of the same interval."""


class Comparison(Record):
    """An arm against another, as a hypothesis of the report."""

    arm: str
    difference: Difference
    p: float | None
    """Two-sided p value of the paired t test; null for a single seed."""
    p_holm: float | None = None
    """The same, corrected for the number of the report's comparisons by Holm's method."""

    @property
    def ahead(self) -> bool:
        """Whether the arm is shown to be better, after the correction."""
        return self.p_holm is not None and self.p_holm < LEVEL and self.difference.mean > 0


def difference(arm: Mapping[int, float], other: Mapping[int, float], to: str) -> Difference:
    """Paired differences over the seeds that both have, with the 95 % t interval of their mean."""
    from scipy import stats  # only where a report is made: the API reads reports without it

    seeds = tuple(sorted(set(arm) & set(other)))
    values = tuple(arm[seed] - other[seed] for seed in seeds)
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Difference(to=to, seeds=seeds, values=values, mean=mean, low=None, high=None)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * standard_error(values)
    return Difference(to=to, seeds=seeds, values=values, mean=mean, low=mean - half, high=mean + half)


def compare(arm: str, gained: Difference) -> Comparison:
    """The paired t test of a difference, without a correction."""
    from scipy import stats

    if len(gained.values) < 2:
        return Comparison(arm=arm, difference=gained, p=None)
    error = standard_error(gained.values)
    if error == 0:
        return Comparison(arm=arm, difference=gained, p=0.0 if gained.mean else 1.0)
    p = float(2 * stats.t.sf(abs(gained.mean) / error, len(gained.values) - 1))
    return Comparison(arm=arm, difference=gained, p=p)


def holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Correct the p values of all comparisons of a report for their number; the order is kept.

    Equation: of m ascending p values, the k-th becomes max over j ≤ k of min(1, (m − j + 1) p_j) (Holm 1979). With one
    comparison nothing changes. Those of a single seed have no p value and do not count.
    """
    tested = sorted((one.p, index) for index, one in enumerate(comparisons) if one.p is not None)
    corrected: dict[int, float] = {}
    largest = 0.0
    for before, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - before) * p))
        corrected[index] = largest
    return tuple(one.model_copy(update={"p_holm": corrected.get(index)}) for index, one in enumerate(comparisons))


def standard_deviation(values: Sequence[float]) -> float:
    """The sample standard deviation of at least two values."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean of at least two values."""
    return standard_deviation(values) / math.sqrt(len(values))


def points(gained: Difference | None) -> str:
    """A difference in points (hundredths of the metric) with its interval."""
    if gained is None:
        return "–"
    mean = f"{100 * gained.mean:+.2f}"
    if gained.low is None or gained.high is None:
        return mean
    return f"{mean} [{100 * gained.low:+.2f}, {100 * gained.high:+.2f}]"


def p_text(p: float | None) -> str:
    """A p value with three digits; none for a single seed."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
