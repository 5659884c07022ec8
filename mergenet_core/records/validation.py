"""Compares trials by the validation metric of their last weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mergenet_core.records.job import Trial


def best_on_validation(trials: Iterable[Trial]) -> Trial:
    """The trial whose last weights have the highest validation metric; the first of those that are equal."""
    return max(trials, key=validation_metric)


def validation_metric(trial: Trial) -> float:
    """The validation metric of a trial's last weights; minus infinity if it has none."""
    return -math.inf if trial.result is None else trial.result.last.get("validation", -math.inf)
