"""Which model a job delivers: the best transfer's, or the control's where no transfer is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergenet_core.records.job import Trial
from mergenet_core.records.validation import best_on_validation, validation_metric
from mergenet_core.spec.job import Deliver

LEVEL = 0.05
"""The largest share of cases in which a candidate is taken though none is better than the control."""
FLIPS = 9999
"""Random sign changes by which scores between 0 and 1 are tested; with up to 13 differences all are tried."""


def preferred(control: Trial, transfers: Iterable[Trial]) -> Trial:
    """The best transfer on validation where it is significantly ahead of the control there, else the control.

    A one-sided paired test at level 0.05 / (number of transfers tried), by Bonferroni. Both models answered the same
    validation examples, so each is compared with itself. Without stored outcomes of both nothing is significant.
    """
    tried = list(transfers)
    best = best_on_validation(tried)
    gained = _gained(best, control)
    return best if gained is not None and p_value(gained) <= LEVEL / len(tried) else control


def p_value(gained: Sequence[float]) -> float:
    """The one-sided p value of paired differences against the hypothesis that no example favours either model.

    Equation: the share of all assignments of signs to the differences whose sum is at least the sum found. For answers
    that are right or wrong it is the exact McNemar test. For other scores it is estimated from `FLIPS` assignments,
    drawn by a fixed seed.
    """
    different = [one for one in gained if one]
    if len({abs(one) for one in different}) <= 1:
        ahead = sum(one > 0 for one in different)
        return mcnemar(ahead, len(different) - ahead)
    from scipy import stats  # only where a report is made: the API reads reports without it

    found = stats.permutation_test(
        (different,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=FLIPS,
        batch=256,
        rng=0,
    )
    return float(found.pvalue)


def mcnemar(ahead: int, behind: int) -> float:
    """The exact one-sided McNemar test: examples that only the one model answered rightly, and only the other.

    Equation: P(X ≥ ahead) for X from a binomial distribution of ahead + behind draws at 1/2.
    """
    from scipy import stats

    return float(stats.binom.sf(ahead - 1, ahead + behind, 0.5))


@dataclass(frozen=True)
class Delivery:
    """The trial whose model the job delivers, and why it is not the transfer's."""

    trial: Trial
    reason: str = ""
    """Empty where the transfer's model is delivered."""


def delivery(transfers: Sequence[Trial], controls: Sequence[Trial], *, harms: bool, deliver: Deliver) -> Delivery:
    """The transfer's model at the seed that is best on validation, or the control's.

    With `deliver: auto` the control's model is delivered where the transfer is shown to harm, or where at the chosen
    seed it is behind the control on the same validation examples; then at the control's own best seed. `transfers` are
    what is taken at each seed, which with method `auto` may be the control.
    """
    control, by_seed = best_on_validation(controls), {one.seed: one for one in controls}
    chosen = best_on_validation(transfers)
    if chosen.arm == "control":
        return Delivery(chosen, "no transfer is significantly ahead of it on validation at this seed")
    if deliver == "transfer":
        return Delivery(chosen)
    if harms:
        return Delivery(control, "the transfer is shown to harm")
    reached, needed = validation_metric(chosen), validation_metric(by_seed[chosen.seed])
    if reached < needed:
        found = f"{100 * reached:.2f} against {100 * needed:.2f}"
        return Delivery(control, f"the transfer is behind it on validation at its best seed, {chosen.seed}: {found}")
    return Delivery(chosen)


def picked(trials: Sequence[Trial]) -> dict[int, Trial]:
    """The preferred trial at each seed of a job that tried several candidates."""
    controls = {trial.seed: trial for trial in trials if trial.arm == "control"}
    return {
        seed: preferred(control, [trial for trial in trials if trial.arm == "transfer" and trial.seed == seed])
        for seed, control in sorted(controls.items())
    }


def _gained(transfer: Trial, control: Trial) -> list[float] | None:
    """The differences on the same validation examples; None where they were not stored."""
    stored = [trial.result.outcomes for trial in (transfer, control) if trial.result is not None]
    first, second = stored if len(stored) == 2 else (None, None)
    if first is None or second is None:
        return None
    return [one - other for one, other in zip(first.terms(), second.terms(), strict=True)]
