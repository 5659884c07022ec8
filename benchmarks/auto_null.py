"""How often `transfer.method: auto` takes a candidate that is no better than the control, by simulation.

    python benchmarks/auto_null.py

It simulates right and wrong answers on a validation split of n examples for a control and k candidates, all of the
same true accuracy, asks the rule of mergenet_core/results/selection.py, and writes docs/evidence/auto_null.md. Takes
two minutes, trains nothing.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from measuring import write_evidence
from numpy.typing import NDArray

from mergenet_core.results.selection import LEVEL, mcnemar, p_value

EXAMPLES, TRIED = (100, 200, 300, 1000), (1, 2, 4)
ACCURACIES, AGREEMENTS = (0.3, 0.5, 0.7, 0.9), (0.0, 0.5, 0.8)
GAINS = (0.05, 0.1, 0.15)
REPETITIONS = 20_000
SCORES, SCORE_REPETITIONS = (100, 200), 1000
Rule = Callable[[int, int, int, int, int], bool]
"""Whether a rule takes the best of k candidates: right answers of the control on n examples; examples that only the
candidate, and only the control, answered rightly; n; k."""

INTRODUCTION = """\
# How often `auto` takes a useless candidate

Written by `benchmarks/auto_null.py`: a simulation, no training. A control and k candidates answer n validation
examples; each has the same true accuracy. A candidate repeats the control's outcome on a share of the examples (the
agreement) and is right or wrong by chance on the others. The table has the share of cases in which a rule takes a
candidate: the mean over accuracies of {accuracies} and agreements of {agreements}, and the worst of them.
*Paired* is the rule of jobs: the exact one-sided McNemar test of the best candidate, at level 0.05 / k. *Unpaired* was
the rule before: a test of two proportions, as if both models had answered different examples. *One error* was the
first: a lead of more than one standard error of the control's metric. {repetitions:,} repetitions of each case, seed
{seed}."""
POWER = """\
The same with candidates that are truly better, from an accuracy of 0.7: the share of cases in which one is taken,
unpaired → paired, with half, and with four fifths, of the outcomes repeated."""
REAL_SCORES = """\
Scores between 0 and 1, such as F1, are compared by a sign-flip test. Here half of the scores are 0 or 1 and the others
spread evenly between, and a candidate repeats half of the control's; {score_repetitions:,} repetitions. The share of
cases in which a useless candidate is taken:"""
NOTES = """\
The 5 % are for candidates that are as good as the control at that seed: whether another seed would have given the same
model is no matter of this test. Questions on one text or image are taken as independent of one another."""


def main() -> None:
    """Simulate, and write the page."""
    numbers = simulate(seed=0)
    write_evidence("auto_null", numbers, page(numbers))
    sys.stdout.write(page(numbers))


def simulate(seed: int) -> dict[str, Any]:
    """The shares of cases in which a candidate is taken."""
    draw = np.random.default_rng(seed)
    null = [
        {"examples": n, "tried": k, "accuracy": v, "agreement": agreement, **taken(draw, n, k, v, agreement)}
        for n in EXAMPLES
        for k in TRIED
        for v in ACCURACIES
        for agreement in AGREEMENTS
    ]
    power = [
        {"examples": n, "tried": k, "gain": gain, "agreement": agreement, **taken(draw, n, k, 0.7, agreement, gain)}
        for n in EXAMPLES
        for k in TRIED
        for gain in GAINS
        for agreement in (0.5, 0.8)
        if 0.7 + gain / (1 - agreement) <= 1  # else the outcomes left cannot make up the gain
    ]
    scores = [{"examples": n, "tried": k, "paired": taken_by_scores(draw, n, k)} for n in SCORES for k in (1, 4)]
    return {
        "seed": seed,
        "repetitions": REPETITIONS,
        "score_repetitions": SCORE_REPETITIONS,
        "null": null,
        "power": power,
        "scores": scores,
    }


def taken(
    draw: np.random.Generator, n: int, k: int, accuracy: float, agreement: float, gain: float = 0.0
) -> dict[str, float]:
    """By rule, the share of cases in which it takes the best of k candidates."""
    control = draw.binomial(n, accuracy, REPETITIONS)
    anew = accuracy + gain / (1 - agreement)
    pairs = [
        np.stack(
            [draw.binomial(n - control, (1 - agreement) * anew), draw.binomial(control, (1 - agreement) * (1 - anew))]
        )
        for _ in range(k)
    ]  # of each candidate: examples that it alone, and that the control alone, answered rightly
    stacked = np.stack(pairs)
    best = (stacked[:, 0] - stacked[:, 1]).argmax(axis=0)
    ahead, behind = stacked[best, :, np.arange(REPETITIONS)].T
    cases, counts = np.unique(np.stack([control, ahead, behind]), axis=1, return_counts=True)
    found = dict.fromkeys(RULES, 0)
    for (right, only_candidate, only_control), count in zip(cases.T.tolist(), counts.tolist(), strict=True):
        for name, rule in RULES.items():
            found[name] += count * rule(right, only_candidate, only_control, n, k)
    return {name: count / REPETITIONS for name, count in found.items()}


def taken_by_scores(draw: np.random.Generator, n: int, k: int) -> float:
    """The share of cases in which the best of k candidates of the control's own quality is taken by its scores."""
    found = 0
    for _ in range(SCORE_REPETITIONS):
        control = _scores(draw, n)
        candidates = [np.where(draw.random(n) < 0.5, control, _scores(draw, n)) for _ in range(k)]
        best = max(candidates, key=lambda scores: float(scores.sum()))
        found += p_value((best - control).tolist()) <= LEVEL / k
    return found / SCORE_REPETITIONS


def _scores(draw: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.where(draw.random(n) < 0.5, draw.integers(0, 2, n), draw.random(n))


def paired(right: int, ahead: int, behind: int, examples: int, tried: int) -> bool:
    """The rule of jobs."""
    return _mcnemar(ahead, behind) <= LEVEL / tried


_mcnemar = functools.cache(mcnemar)


def unpaired(right: int, ahead: int, behind: int, examples: int, tried: int) -> bool:
    """A lead that is significant for two independent sets of examples."""
    lead = (ahead - behind) / examples
    return lead > unpaired_lead(right / examples, right / examples + lead, examples, tried)


def one_error(right: int, ahead: int, behind: int, examples: int, tried: int) -> bool:
    """A lead of more than one standard error of the control's metric, however many candidates are tried."""
    accuracy = right / examples
    return (ahead - behind) / examples > math.sqrt(accuracy * (1 - accuracy) / examples)


RULES: dict[str, Rule] = {"one error": one_error, "unpaired": unpaired, "paired": paired}


def unpaired_lead(control: float, transfer: float, examples: int, tried: int) -> float:
    """The lead on validation that the best of some candidates needs where single outcomes are not known.

    Equation: z √(2 p (1 − p) / n) + 1 / n, with p the mean of both metrics, z the normal quantile of 1 − 0.05 / tried.
    """
    p = min(max((control + transfer) / 2, 0.0), 1.0)
    return _quantile(tried) * math.sqrt(2 * p * (1 - p) / examples) + 1 / examples


@functools.cache
def _quantile(tried: int) -> float:
    return NormalDist().inv_cdf(1 - LEVEL / tried)


def page(numbers: dict[str, Any]) -> str:
    """The tables of all rules."""
    about = INTRODUCTION.format(
        accuracies=", ".join(map(str, ACCURACIES)), agreements=", ".join(map(str, AGREEMENTS)), **numbers
    )
    heads = [f"{rule}: {what}" for rule in RULES for what in ("mean", "worst")]
    lines = [about, "", "| n | k | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for n in EXAMPLES:
        for k in TRIED:
            cases = [case for case in numbers["null"] if (case["examples"], case["tried"]) == (n, k)]
            cells = []
            for rule in RULES:
                shares = [case[rule] for case in cases]
                cells += [f"{100 * sum(shares) / len(shares):.1f} %", f"{100 * max(shares):.1f} %"]
            lines.append(f"| {n} | {k} | " + " | ".join(cells) + " |")
    columns = list(dict.fromkeys((case["gain"], case["agreement"]) for case in numbers["power"]))
    heads = [f"+{100 * gain:.0f} points, {agreement}" for gain, agreement in columns]
    lines += ["", POWER, "", "| n | k | " + " | ".join(heads) + " |", "|---" * (2 + len(columns)) + "|"]
    for n in EXAMPLES:
        for k in TRIED:
            cases = [case for case in numbers["power"] if (case["examples"], case["tried"]) == (n, k)]
            cells = [f"{100 * case['unpaired']:.0f} → {100 * case['paired']:.0f} %" for case in cases]
            lines.append(f"| {n} | {k} | " + " | ".join(cells) + " |")
    lines += ["", REAL_SCORES.format(**numbers), "", "| n | k | paired |", "|---|---|---|"]
    lines += [f"| {case['examples']} | {case['tried']} | {100 * case['paired']:.1f} % |" for case in numbers["scores"]]
    return "\n".join([*lines, "", NOTES]) + "\n"


if __name__ == "__main__":
    main()
