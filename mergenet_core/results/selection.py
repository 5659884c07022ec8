"""Which trial the job delivers at each seed: the best transfer, or the control where no transfer is clearly better."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

from mergenet_core.records.job import Trial
from mergenet_core.records.validation import best_on_validation, validation_metric

LEVEL = 0.05
"""The largest share of cases in which a candidate is taken though none is better than the control."""


def preferred(control: Trial, transfers: Iterable[Trial]) -> Trial:
    """The best transfer where its lead over the control on validation is significant, else the control.

    Without a known number of validation examples nothing is significant.
    """
    tried = list(transfers)
    best, metric = best_on_validation(tried), validation_metric(control)
    split = control.result.data.get("validation") if control.result is not None else None
    if not split:
        return control
    reached = validation_metric(best)
    return best if reached - metric > needed_lead(metric, reached, int(split["examples"]), len(tried)) else control


def needed_lead(control: float, transfer: float, examples: int, tried: int) -> float:
    """The lead on validation that the best of some candidates needs over the control.

    A one-sided test at level 0.05 / `tried` (Bonferroni), of means over n examples of scores between 0 and 1.
    Equation: z √(2 p (1 − p) / n) + 1 / n, with p the mean of both metrics, z the normal quantile of the level, and 1/n
    for continuity. p (1 − p) is the largest variance that such a score can have. The two means are taken as
    independent; on the same examples they are not, and their difference varies less, so that the test is conservative.
    """
    p = min(max((control + transfer) / 2, 0.0), 1.0)
    return _quantile(tried) * math.sqrt(2 * p * (1 - p) / examples) + 1 / examples


@functools.cache
def _quantile(tried: int) -> float:
    return NormalDist().inv_cdf(1 - LEVEL / tried)


def picked(trials: Sequence[Trial]) -> dict[int, Trial]:
    """The preferred trial at each seed of a job that tried several candidates."""
    controls = {trial.seed: trial for trial in trials if trial.arm == "control"}
    return {
        seed: preferred(control, [trial for trial in trials if trial.arm == "transfer" and trial.seed == seed])
        for seed, control in sorted(controls.items())
    }
