"""VQA's accuracy against values worked out by hand from its definition."""

from __future__ import annotations

import itertools

import pytest

from mergenet_core.tasks.visual_question_answering.scores import accuracies, accuracy, comparable, normalise


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)],
)
def test_an_answer_that_so_many_of_ten_gave(given: int, expected: float) -> None:
    # of the ten subsets of nine, `given` leave out one who gave it: (g · min((g-1)/3, 1) + (10-g) · min(g/3, 1)) / 10
    judged = comparable(["red"] * given + [f"blue {person}" for person in range(10 - given)])
    assert accuracy("red", judged) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("people", [4, 7, 10])
def test_the_closed_form_is_the_mean_over_those_left_out(people: int) -> None:
    for given in range(people + 1):
        judged = ["red"] * given + ["blue"] * (people - given)
        left = [judged[:out] + judged[out + 1 :] for out in range(people)]
        mean = sum(min(others.count("red") / 3, 1) for others in left) / people
        assert accuracies(judged).get("red", 0.0) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Red ball", "red ball"),
        ("two", "2"),
        ("None", "0"),
        ("ten dogs and a cat", "10 dogs and cat"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("no.", "no"),
        ("u.s.", "us"),
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("black / white-ish", "black white ish"),
        ("yes, 1,5 or so!", "yes 15 or so"),
        (" a\tcat\n", "cat"),
        ("an", ""),
        ("let's", "let's"),
    ],
)
def test_answers_are_normalised_as_officially(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_people_who_all_agree_are_compared_as_they_wrote() -> None:
    assert accuracy("the cat", comparable(["the cat"] * 10)) == 0.0, "the model's answer is normalised, theirs is not"
    assert accuracy("the cat", comparable(["cat"] * 10)) == 1.0
    assert accuracy("t-shirt", comparable(["t-shirt"] * 10)) == 0.0


def test_of_people_who_differ_only_marks_are_taken() -> None:
    judged = comparable(["t-shirt"] * 5 + ["two"] * 4 + ["2"])
    assert accuracy("t shirt", judged) == 1.0
    assert accuracy("two", judged) == pytest.approx(0.3), "two is 2 in the model's answer only"


def test_scores_do_not_depend_on_the_order_of_people() -> None:
    judged = ["red", "red", "blue", "green"]
    scores = {tuple(sorted(accuracies(order).items())) for order in itertools.permutations(judged)}
    assert len(scores) == 1
