"""Each value was worked out by hand from the definition of the official script, whose percent are fractions here."""

from __future__ import annotations

import pytest

from mergenet_core.tasks.question_answering.scores import Judged, best_threshold, exact, f1, normalise, squad_scores

NEVER = 1e9


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Denver-Broncos!", "denverbroncos"),
        ("A cat, an owl and the theatre.", "cat owl and theatre"),
        ("the", ""),
        ("U.S.A", "usa"),
        ("don't", "dont"),
        ("a.b", "ab"),
        ("«Éa»", "«éa»"),
    ],
)
def test_normalisation(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("answer", "gold", "same", "overlap"),
    [
        ("Denver Broncos!", "the Denver Broncos", 1, 1),
        ("gold and silver", "gold", 0, 2 * (1 / 3 * 1) / (1 / 3 + 1)),
        ("late 1990s", "in the late 1990s", 0, 2 * (1 * 2 / 3) / (1 + 2 / 3)),
        ("to be or not to be", "to be", 0, 2 * (2 / 6 * 1) / (2 / 6 + 1)),
        ("silver", "gold", 0, 0),
        ("the", "gold", 0, 0),
        ("the", "", 1, 1),
    ],
)
def test_one_answer_against_one_gold(answer: str, gold: str, same: float, overlap: float) -> None:
    assert exact(answer, gold) == same
    assert f1(answer, gold) == pytest.approx(overlap, abs=1e-12)


def test_a_split_with_and_without_answers() -> None:
    judged = [
        Judged("late 1990s", ("in the late 1990s", "1990s"), -3.0),  # f1 0.8 beats 2/3
        Judged("gold and silver", ("gold",), -2.0),  # f1 0.5
        Judged("Paris", (), -1.0),  # answered, though there is none
        Judged("Rome", ("Rome",), 5.0),  # not answered, though there is one
        Judged("Bern", (), 6.0),  # rightly not answered
        Judged("a", ("the",), -4.0),  # the gold is dropped, and the answer says nothing either
    ]
    scores = squad_scores(judged, threshold=0.0)
    assert scores == pytest.approx(
        {
            "exact": (0 + 0 + 0 + 0 + 1 + 1) / 6,
            "f1": (0.8 + 0.5 + 0 + 0 + 1 + 1) / 6,
            "HasAns_exact": 1 / 4,
            "HasAns_f1": (0.8 + 0.5 + 0 + 1) / 4,
            "NoAns_exact": 1 / 2,
            "NoAns_f1": 1 / 2,
        },
        abs=1e-6,
    )
    assert set(squad_scores(judged[:2], NEVER)) == {"exact", "f1", "HasAns_exact", "HasAns_f1"}


def test_a_question_at_the_threshold_is_answered() -> None:
    assert squad_scores([Judged("x", ("x",), 2.0)], 2.0)["exact"] == 1
    assert squad_scores([Judged("x", ("x",), 2.0)], 1.99)["exact"] == 0


def test_the_threshold_is_where_f1_is_largest() -> None:
    # in order of the null score: +1 −1 +0.5 −1, from 2 unanswerable questions: 2, 3, 2, 2.5, 1.5
    judged = [
        Judged("gold and silver", ("gold",), 1.0),
        Judged("x", (), 0.5),
        Judged("y", ("y",), -2.0),
        Judged("z", (), 3.0),
    ]
    assert best_threshold(judged) == -2.0
    assert squad_scores(judged, -2.0)["f1"] == pytest.approx(3 / 4)


def test_of_thresholds_that_do_equally_well_the_lowest_is_taken() -> None:
    # from 1 unanswerable question: +1 −1 +1, so 2, 1, 2
    judged = [Judged("x", ("x",), -1.0), Judged("y", (), 0.0), Judged("z", ("z",), 1.0)]
    assert best_threshold(judged) == -1.0


def test_where_answering_never_pays_nothing_is_answered() -> None:
    judged = [Judged("wrong", ("right",), -7.0), Judged("x", (), -6.0)]
    assert squad_scores(judged, best_threshold(judged)) == {
        "exact": 0.5, "f1": 0.5, "HasAns_exact": 0, "HasAns_f1": 0, "NoAns_exact": 1, "NoAns_f1": 1,
    }  # fmt: skip


def test_without_unanswerable_questions_all_that_are_right_are_answered() -> None:
    judged = [Judged("x", ("x",), 9.0), Judged("y", ("z",), 8.0), Judged("w", ("w",), 7.0)]
    assert squad_scores(judged, best_threshold(judged))["f1"] == pytest.approx(2 / 3)
