"""The verdict on a transfer: its word, and a sentence with the effect and the interval that it follows from.

Rules: *gain* needs a transfer that is ahead of the control and of every sham, each by a paired t test over the seeds
with Holm's correction over all comparisons of the report. The sham of `transfer+distill` is `distill-sham`. A
difference that is not significant is called that, with its interval and the number of seeds; it never counts as
evidence that two arms are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mergenet_core.results.comparisons import Comparison, p_text, points
from mergenet_core.spec.job import DISTILL_SHAM, SHAMS

Verdict = Literal["gain", "no sham", "no gain over the sham shown", "no gain shown", "harm", "one seed"]
"""`gain`: ahead of the control and of every sham. `no sham`: ahead of the control, but no sham ran.
`harm`: the 95 % interval against the control is below zero; it is not corrected, so that no other arm hides harm."""
TRIED = "best transfer tried"
"""Method `auto`: at each seed the transfer that is best on validation, whether it is delivered or not."""


@dataclass(frozen=True)
class Judgement:
    """A verdict with its sentence."""

    verdict: Verdict
    sentence: str


def judge(wanted: str, comparisons: Sequence[Comparison], metric: str) -> Judgement:
    """Judge the arm in question, `transfer` or `transfer+distill`, by a report's corrected comparisons."""
    control = next(one for one in comparisons if one.arm == wanted and one.difference.to == "control")
    own = SHAMS if wanted == "transfer" else (DISTILL_SHAM,)
    shams = [one for one in comparisons if one.difference.to in own and one.arm in (wanted, TRIED)]
    verdict = _verdict(control, shams)
    count = sum(one.p is not None for one in comparisons)
    clauses = [_control_clause(control, verdict, metric, count), *(_sham_clause(one, count) for one in shams)]
    if not shams:
        missing = "sham" if wanted == "transfer" else DISTILL_SHAM
        clauses.append(f"no {missing} ran, so it is open whether the source's knowledge matters")
    end = {
        "gain": ": the source's knowledge matters",
        "no gain over the sham shown": ": it is not shown that the source's knowledge matters",
        "one seed": "; one seed shows no spread, run at least five for a claim",
    }.get(verdict, "")
    return Judgement(verdict, "; ".join(clauses) + end + ".")


def _verdict(control: Comparison, shams: Sequence[Comparison]) -> Verdict:
    if control.difference.high is None:
        return "one seed"
    if control.difference.high < 0:
        return "harm"
    if not control.ahead:
        return "no gain shown"
    if not shams:
        return "no sham"
    return "gain" if all(sham.ahead for sham in shams) else "no gain over the sham shown"


def _control_clause(control: Comparison, verdict: Verdict, metric: str, count: int) -> str:
    effect = f"{control.arm} changes test {metric} by {points(control.difference)} points against its control"
    if verdict == "one seed":
        return f"{effect} at one seed"
    effect += f" over {len(control.difference.seeds)} paired seeds (95 % interval)"
    return effect + _reservation(control, count)


def _sham_clause(sham: Comparison, count: int) -> str:
    subject = "it" if sham.arm != TRIED else f"the {TRIED}"
    return f"against {sham.difference.to} {subject} is at {points(sham.difference)}" + _reservation(sham, count)


def _reservation(one: Comparison, count: int) -> str:
    """Why a difference is no gain; empty where it is one, and for a single seed."""
    low, high = one.difference.low, one.difference.high
    if low is None or high is None or one.ahead:
        return ""
    if high < 0:
        return ", which is worse"
    if low > 0:
        return f", but p is {p_text(one.p_holm)} with Holm's correction for {count} comparisons"
    return f", so no difference is shown at {len(one.difference.seeds)} seeds"
