"""The paired rule of `auto` against scipy's tests, and outcomes as a job's record holds them."""

from __future__ import annotations

import itertools
import random

import pytest
from scipy import stats

from mergenet_core.records.job import ArmCost, Trial, TrialResult
from mergenet_core.records.outcomes import EXAMPLES_MAX, Outcomes, pack_outcomes
from mergenet_core.results.selection import mcnemar, p_value, preferred


def trial(name: str, terms: list[float] | None) -> Trial:
    result = TrialResult(
        steps=10,
        final_loss=0.1,
        metric="accuracy",
        last={"validation": sum(terms) / len(terms) if terms else 0.9, "test": 0.5},
        outcomes=None if terms is None else pack_outcomes(terms),
        cost=ArmCost(step_seconds=0.1, train_seconds=1.0),
        parameters=7,
    )
    return Trial(id=f"{name}-0", kind="arm", arm=name.split("-")[0], result=result)


def right(number: int, wrong_first: int = 0) -> list[float]:
    """Outcomes on 100 examples of which `number` are right, the first `wrong_first` not among them."""
    return [0.0] * wrong_first + [1.0] * number + [0.0] * (100 - wrong_first - number)


def test_the_exact_test_of_right_and_wrong_answers_is_mcnemar_s() -> None:
    assert mcnemar(8, 2) == pytest.approx(stats.binomtest(8, 10, alternative="greater").pvalue)
    assert p_value([1.0] * 8 + [-1.0] * 2 + [0.0] * 90) == pytest.approx(mcnemar(8, 2))
    assert p_value([0.0] * 5) == 1.0


def test_the_test_of_scores_counts_all_signs_of_few_differences() -> None:
    gained = [0.5, 0.25, -0.1, 0.3, 0.05]
    sums = [
        sum(s * abs(one) for s, one in zip(signs, gained, strict=True))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    assert p_value([*gained, 0.0]) == pytest.approx(sum(one >= sum(gained) - 1e-9 for one in sums) / 32)


def test_the_test_of_scores_agrees_with_the_t_test_on_many_examples() -> None:
    draw = random.Random(3)
    gained = [draw.uniform(-1, 1.1) for _ in range(300)]
    t = stats.ttest_1samp(gained, 0, alternative="greater").pvalue
    assert 0.001 < t < 0.05
    assert p_value(gained) == pytest.approx(t, abs=0.01)
    assert p_value(gained) == p_value(gained), "the same every time"


def test_a_small_lead_counts_where_both_models_agree_on_the_other_examples() -> None:
    control, transfer = trial("control", right(60)), trial("transfer", right(66))
    assert preferred(control, [transfer]) is transfer  # 6 examples gained, none lost: p = 1/64
    lost = trial("transfer", right(66, wrong_first=10))  # 16 gained, 10 lost, the same lead
    assert preferred(control, [lost]) is control


def test_the_best_of_several_candidates_needs_a_smaller_p_value() -> None:
    control = trial("control", right(60))
    worse, best = trial("transfer-a", right(59)), trial("transfer-b", right(65))
    assert preferred(control, [best]) is best  # p = 1/32
    assert preferred(control, [worse, best]) is control  # 1/32 > 0.05 / 2
    assert preferred(control, [trial("transfer-c", right(66)), best]).id == "transfer-c-0"


def test_without_outcomes_the_control_is_kept() -> None:
    control, transfer = trial("control", right(20)), trial("transfer", None)
    assert preferred(control, [transfer]) is control
    unknown = trial("control", None)
    assert preferred(unknown, [trial("transfer", right(90))]) is unknown


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 200])
def test_right_and_wrong_are_stored_as_bits(count: int) -> None:
    draw = random.Random(count)
    terms = [float(draw.random() < 0.5) for _ in range(count)]
    stored = pack_outcomes(terms)
    assert stored.form == "bits"
    assert len(stored.data) <= 4 * (count // 24 + 1)
    assert Outcomes.model_validate_json(stored.model_dump_json()).terms() == terms


def test_other_scores_are_stored_to_three_digits() -> None:
    terms = [0.0, 1.0, 1 / 3, 0.6, 2.75]
    assert pack_outcomes(terms).terms() == pytest.approx(terms, rel=1e-3)


def test_of_a_large_split_evenly_spaced_examples_are_stored() -> None:
    terms = [float(index % 3 == 0) for index in range(10_000)]
    stored = pack_outcomes(terms)
    assert (stored.every, stored.terms()) == (3, terms[::3])
    assert stored.count <= EXAMPLES_MAX
