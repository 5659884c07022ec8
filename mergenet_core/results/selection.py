"""Which trial the job delivers at each seed: the best transfer, or the control where no transfer is clearly better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mergenet_core.planning.auto_methods import best_on_validation, validation_metric
from mergenet_core.records.job import Trial


def preferred(control: Trial, transfers: Iterable[Trial]) -> Trial:
    """The best transfer where its validation metric exceeds the control's by a standard error, else the control.

    Equation: √(v (1 − v) / n) for a metric v over n examples, the largest that a metric between 0 and 1 can have.
    """
    best, metric = best_on_validation(transfers), validation_metric(control)
    split = control.result.data.get("validation") if control.result is not None else None
    error = math.sqrt(metric * (1 - metric) / int(split["examples"])) if split and 0 < metric < 1 else 0.0
    return best if validation_metric(best) > metric + error else control


def picked(trials: Sequence[Trial]) -> dict[int, Trial]:
    """The preferred trial at each seed of a job that tried several candidates."""
    controls = {trial.seed: trial for trial in trials if trial.arm == "control"}
    return {
        seed: preferred(control, [trial for trial in trials if trial.arm == "transfer" and trial.seed == seed])
        for seed, control in sorted(controls.items())
    }
