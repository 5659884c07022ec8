"""What an arm costs in time with all that had to be trained for it, and what the control would do in that time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergenet_core.records.job import ArmCost, Trial, TrialResult

WITHOUT_SOURCE = ("control", "sham-untrained")
"""Arms that read nothing of a source's training."""


def training_seconds(costs: Iterable[ArmCost]) -> float:
    """The time of all steps, and of what came before them: a teacher, a fit, the projection of the source."""
    return sum(cost.train_seconds + cost.extra_seconds for cost in costs)


def source_seconds(arm: str, results: Sequence[TrialResult], source: Trial | None) -> float:
    """The time of the source's training per model of an arm: the source's own trial, and its steps beside the target's.

    The source's own trial is counted whole for each model, because one delivered model needs all of it.
    """
    own = source.result.cost.train_seconds if source is not None and source.result is not None else 0.0
    joint = sum(result.cost.source_seconds for result in results) / len(results)
    return joint + (0.0 if arm in WITHOUT_SOURCE else own)


def equal_steps(total_seconds: float, control: Sequence[TrialResult]) -> int | None:
    """The steps that the control takes in the given time, at the mean time of its own steps; None if it took none."""
    seconds = sum(result.cost.train_seconds for result in control)
    return round(total_seconds * sum(result.steps for result in control) / seconds) if seconds > 0 else None
