"""Rows are drawn by the seed, nested by their limit, and a group stays on one side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergenet_core.errors import DataRefused
from mergenet_core.spec.job import DataSpec
from mergenet_core.tasks.data.sampling import draw


def drawn(total: int, groups: list[int] | None = None, seed: int = 0, **data: Any) -> tuple[list[int], list[int]]:
    groups_n = None if groups is None else torch.tensor(groups)
    train, held = draw(DataSpec(train="a", test="b", **data), total, seed=seed, field="target.data", groups_n=groups_n)
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
