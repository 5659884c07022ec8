"""VQA's accuracy against values worked out by hand from its definition."""

from __future__ import annotations

import itertools

import pytest

from mergenet_core.tasks.visual_question_answering.scores import PeoplesAnswers, normalise


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)],
)
def test_an_answer_that_so_many_of_ten_gave(given: int, expected: float) -> None:
    # of the ten subsets of nine, `given` leave out one who gave it: (g · min((g-1)/3, 1) + (10-g) · min(g/3, 1)) / 10
    judged = PeoplesAnswers.of(["red"] * given + [f"blue {person}" for person in range(10 - given)])
    assert judged.score("red") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("people", [4, 7, 10])
def test_the_closed_form_is_the_mean_over_those_left_out(people: int) -> None:
    for given in range(people + 1):
        judged = ["red"] * given + ["blue"] * (people - given)
        left = [judged[:out] + judged[out + 1 :] for out in range(people)]
        mean = sum(min(others.count("red") / 3, 1) for others in left) / people
        assert PeoplesAnswers.of(judged).score("red") == pytest.approx(mean, abs=1e-6)


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


@pytest.mark.parametrize(
    ("people", "model", "score"),
    [
        ("the cat", "the cat", 1.0),
        ("the cat", " the\tcat\n", 1.0),
        ("the cat", "cat", 0.0),
        ("cat", "the cat", 0.0),
        ("t-shirt", "t-shirt", 1.0),
        ("t-shirt", "t shirt", 0.0),
        ("2", "two", 0.0),
        ("Yes", "yes", 0.0),
    ],
)
def test_where_people_agree_the_answer_is_compared_as_it_is(people: str, model: str, score: float) -> None:
    assert PeoplesAnswers.of([people] * 10).score(model) == score


@pytest.mark.parametrize(
    ("model", "score"),
    # normalised: 4 x "t shirt", 3 x "2", 2 x "cat", 1 x "don't know"; g of 10 people score g <= 3: 0.3 g, g = 4: 1.0
    [
        ("t-shirt", 1.0),
        ("T shirt.", 1.0),
        ("two", 0.9),
        ("the 2", 0.9),
        ("a cat", 0.6),
        ("dont know", 0.3),
        ("dog", 0.0),
    ],
)
def test_where_people_differ_both_sides_are_normalised(model: str, score: float) -> None:
    written = ["t-shirt", "t-shirt", "T shirt", "a t-shirt", "two", "2", "Two.", "the cat", "cat", "dont know"]
    assert PeoplesAnswers.of(written).score(model) == pytest.approx(score, abs=1e-6)


def test_people_who_differ_in_spelling_alone_have_disagreed() -> None:
    judged = PeoplesAnswers.of(["the cat"] * 9 + ["cat"])
    assert not judged.unanimous
    assert judged.score("A cat!") == 1.0, "all ten say cat once they are normalised"
    assert PeoplesAnswers.of(["cat"] * 9 + ["cat\n"]).unanimous, "spaces at the end are no difference"


def test_scores_do_not_depend_on_the_order_of_people() -> None:
    judged = ["red", "red", "blue", "green"]
    scores = {tuple(sorted(PeoplesAnswers.of(order).scores().items())) for order in itertools.permutations(judged)}
    assert len(scores) == 1
