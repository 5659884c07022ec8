"""How often `transfer.method: auto` takes a candidate that is no better than the control, by simulation.

    python benchmarks/auto_null.py

It simulates right and wrong answers on a validation split of n examples for a control and k candidates, all of the
same true accuracy, asks the rule of mergenet_core/results/selection.py, and writes docs/evidence/auto_null.md. Takes
seconds, trains nothing.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from measuring import write_evidence

from mergenet_core.results.selection import needed_lead

EXAMPLES, TRIED = (100, 300, 1000), (1, 2, 4)
ACCURACIES, AGREEMENTS = (0.3, 0.5, 0.7, 0.9), (0.0, 0.5, 0.8)
GAINS = (0.05, 0.1, 0.15)
REPETITIONS = 20_000

INTRODUCTION = """\
# How often `auto` takes a useless candidate

Written by `benchmarks/auto_null.py`: a simulation, no training. A control and k candidates answer n validation
examples; each has the same true accuracy. A candidate repeats the control's outcome on a share of the examples (the
agreement) and is right or wrong by chance on the others. The table has the share of cases in which the rule takes a
candidate: the mean over accuracies of {accuracies} and agreements of {agreements}, and the worst of them.
*Before*: a candidate that is ahead by more than one standard error of the control's metric was taken. {repetitions:,}
repetitions of each case, seed {seed}."""
POWER = """\
The price is gains that are not taken. The same with candidates that are truly better, from an accuracy of 0.7, with
half of the outcomes repeated: the share of cases in which one is taken."""
NOTES = """\
The rule compares proportions as if they came from two independent sets of examples. Two models err on the same
examples more often than by chance, so it is too careful where they agree; a test on the single examples would take
more of the gains. Candidates that differ from the control by chance of the training, and not of the validation split,
are truly better or worse at that seed and no matter of this table."""


def main() -> None:
    """Simulate, and write the page."""
    numbers = simulate(seed=0)
    write_evidence("auto_null", numbers, page(numbers))
    sys.stdout.write(page(numbers))


def simulate(seed: int) -> dict[str, Any]:
    """The shares of cases in which a candidate is taken."""
    draw = np.random.default_rng(seed)
    null = [
        {"examples": n, "tried": k, "accuracy": v, "agreement": agreement}
        | {"before": taken(draw, n, k, v, agreement, former_lead), "now": taken(draw, n, k, v, agreement, needed_lead)}
        for n in EXAMPLES
        for k in TRIED
        for v in ACCURACIES
        for agreement in AGREEMENTS
    ]
    power = [
        {"examples": n, "tried": k, "gain": gain, "now": taken(draw, n, k, 0.7, 0.5, needed_lead, gain)}
        for n in EXAMPLES
        for k in TRIED
        for gain in GAINS
    ]
    return {"seed": seed, "repetitions": REPETITIONS, "null": null, "power": power}


def taken(
    draw: np.random.Generator, n: int, k: int, accuracy: float, agreement: float, rule: Any, gain: float = 0.0
) -> float:
    """The share of cases in which the best of k candidates leads the control by as much as a rule needs."""
    control = draw.binomial(n, accuracy, REPETITIONS)
    anew = accuracy + gain / (1 - agreement)
    right, wrong = agreement + (1 - agreement) * anew, (1 - agreement) * anew
    best = np.max([draw.binomial(control, right) + draw.binomial(n - control, wrong) for _ in range(k)], axis=0)
    cases, counts = np.unique(np.stack([control, best]), axis=1, return_counts=True)
    found = sum(
        int(count)
        for (of_control, of_best), count in zip(cases.T.tolist(), counts.tolist(), strict=True)
        if (of_best - of_control) / n > rule(of_control / n, of_best / n, n, k)
    )
    return found / REPETITIONS


def former_lead(control: float, transfer: float, examples: int, tried: int) -> float:
    """One standard error of the control's metric, however many candidates are tried."""
    return math.sqrt(control * (1 - control) / examples)


def page(numbers: dict[str, Any]) -> str:
    """The tables of both."""
    about = INTRODUCTION.format(
        accuracies=", ".join(map(str, ACCURACIES)), agreements=", ".join(map(str, AGREEMENTS)), **numbers
    )
    lines = [about, "", "| n | k | before: mean | before: worst | now: mean | now: worst |", "|---" * 6 + "|"]
    for n in EXAMPLES:
        for k in TRIED:
            cases = [case for case in numbers["null"] if (case["examples"], case["tried"]) == (n, k)]
            cells = []
            for rule in ("before", "now"):
                shares = [case[rule] for case in cases]
                cells += [f"{100 * sum(shares) / len(shares):.1f} %", f"{100 * max(shares):.1f} %"]
            lines.append(f"| {n} | {k} | " + " | ".join(cells) + " |")
    lines += ["", POWER, "", "| n | k | " + " | ".join(f"+{100 * gain:.0f} points" for gain in GAINS) + " |"]
    lines.append("|---" * (2 + len(GAINS)) + "|")
    for n in EXAMPLES:
        for k in TRIED:
            cases = [case for case in numbers["power"] if (case["examples"], case["tried"]) == (n, k)]
            lines.append(f"| {n} | {k} | " + " | ".join(f"{100 * case['now']:.0f} %" for case in cases) + " |")
    return "\n".join([*lines, "", NOTES]) + "\n"


if __name__ == "__main__":
    main()
