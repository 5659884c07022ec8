"""Paired tests and Holm's correction against values worked out by hand and by scipy."""

from __future__ import annotations

import pytest
from scipy import stats

from mergenet_core.results.comparisons import Comparison, compare, difference, holm


def with_p(p: float | None) -> Comparison:
    return Comparison(arm="transfer", difference=difference({0: 1.0}, {0: 0.0}, "control"), p=p)


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.04], [0.04]),
        ([0.01, 0.04], [0.02, 0.04]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),  # 3 x .01, then 2 x .03, then max(.04, .06)
        ([0.6, 0.7], [1.0, 1.0]),
        ([None, 0.02, None], [None, 0.02, None]),
    ],
)
def test_holm_multiplies_the_smallest_by_the_number_of_comparisons(given, corrected) -> None:
    found = [one.p_holm for one in holm([with_p(p) for p in given])]
    assert found == [pytest.approx(p) if p is not None else None for p in corrected]


def test_p_is_that_of_the_paired_t_test() -> None:
    arm, other = [0.81, 0.79, 0.85, 0.80], [0.80, 0.72, 0.81, 0.79]
    gained = difference(dict(enumerate(arm)), dict(enumerate(other)), "control")
    assert compare("transfer", gained).p == pytest.approx(stats.ttest_rel(arm, other).pvalue, abs=1e-12)


def test_equal_arms_are_not_shown_to_differ() -> None:
    same = {0: 0.5, 1: 0.6}
    found = holm([compare("transfer", difference(same, same, "control"))])[0]
    assert found.p_holm == 1.0
    assert not found.ahead
