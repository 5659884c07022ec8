"""Rows are drawn by the seed, nested by their limit, and a group stays on one side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergenet_core.errors import DataRefused
from mergenet_core.spec.data import DataSpec, HeldOut
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.data.sampling import draw
from mergenet_core.tasks.task import TaskInputs


def drawn(
    total: int, groups: list[int] | None = None, seed: int = 0, held_out: HeldOut | None = None, **data: Any
) -> tuple[list[int], list[int]]:
    groups_n = None if groups is None else torch.tensor(groups)
    spec = DataSpec(train="a", test="b", **data)
    inputs = TaskInputs(spec, Roots((), ()), seed=seed, field="target.data", held_out=held_out)
    train, held = draw(inputs, total, groups_n=groups_n)
    return train.tolist(), held.tolist()


def test_groups_never_stand_on_both_sides() -> None:
    groups = [row // 7 for row in range(98)]
    for seed in range(5):
        train, held = drawn(98, groups, seed)
        assert (len(train), len(held)) == (98 - 21, 19)
        assert not {groups[row] for row in train} & {groups[row] for row in held}
        assert len({groups[row] for row in held}) == 3, "as few groups as hold enough"


def test_groups_of_one_are_no_groups() -> None:
    assert drawn(50, list(range(50)), train_limit=9) == drawn(50, train_limit=9)


def test_a_larger_limit_keeps_the_rows_of_a_smaller() -> None:
    groups = [row // 3 for row in range(60)]
    few, held = drawn(60, groups, train_limit=10)
    more, again = drawn(60, groups, train_limit=20)
    assert (more[:10], again) == (few, held)
    assert drawn(60, groups, train_fraction=0.25)[0] == drawn(60, groups, train_limit=15)[0]


def test_a_single_group_leaves_nothing_to_train_on() -> None:
    with pytest.raises(DataRefused, match=r"target.data.train: holding out 2 of 10 .* or give target.data.validation"):
        drawn(10, [0] * 10)
    assert len(drawn(10, [0] * 10, validation="c")[0]) == 10


@pytest.mark.parametrize("groups", [None, [row // 4 for row in range(200)]], ids=["rows", "groups"])
def test_what_validates_the_target_is_what_its_source_left_out_of_the_same_file(groups: list[int] | None) -> None:
    known, left_out = drawn(200, groups, seed=7, validation_limit=30)
    for seed in range(4):
        train, held = drawn(200, groups, seed, HeldOut(7, 30), train_limit=50, validation_limit=40)
        assert held
        assert set(held) <= set(left_out)
        assert not set(held) & set(known)
        assert not set(held) & set(train)
        assert len(train) == 50
    assert len({tuple(drawn(200, groups, seed, HeldOut(7, 30), train_limit=50)[0]) for seed in range(4)}) == 4


def test_a_source_that_draws_by_the_trial_s_seed_bounds_the_number_alone() -> None:
    train, held = drawn(200, seed=3, held_out=HeldOut(None, 10), validation_limit=30)
    _, left_out = drawn(200, seed=3, validation_limit=10)
    assert held == left_out
    assert len(train) == 190
