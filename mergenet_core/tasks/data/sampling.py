"""Which rows of a training table a trial learns from, and which are held out for validation.

Legend: n rows of the table, g groups of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.spec.job import DataSpec
from mergenet_core.tasks.task import TaskInputs

LEAST_TRAIN = 5
"""With fewer examples a fifth of them, the most that is held out for validation, would be none."""


def draw(inputs: TaskInputs, total: int, *, groups_n: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rows to train on, and those held out (none where the document names a validation split).

    The draw is one permutation: training rows come from its front, validation from its back, so that every arm of a
    seed sees the same ones, and a larger limit keeps those of a smaller. Rows of one group are never on both sides.
    Where a source is trained on the same table (`inputs.held_out`), the rows held out are among those that it holds
    out: they come from the back of its permutation.

    Raises: `DataRefused` where nothing is left to train on.
    """
    data, field, held = inputs.data, inputs.field, inputs.held_out
    order_n = _permutation(total, inputs.seed)
    wanted = data.train_limit or max(1, round(data.train_fraction * total))
    if data.validation is not None:
        return order_n[:wanted], order_n[:0]
    if total < LEAST_TRAIN:
        raise DataRefused(
            f"{field}.train: {data.train} has {total} examples; at least {LEAST_TRAIN} are needed to "
            f"hold some out for validation. Add examples, or give {field}.validation"
        )
    held_out = min(data.validation_limit, total // 5, total if held is None else held.limit)
    held_order_n = order_n if held is None or held.seed is None else _permutation(total, held.seed)
    if groups_n is None:
        validation = held_order_n[total - held_out :]
        return order_n[~torch.isin(order_n, validation)][:wanted], validation
    held_n = _held_groups(groups_n, held_order_n, held_out)[groups_n]
    train, validation = order_n[~held_n[order_n]], held_order_n[held_n[held_order_n]]
    if len(train) == 0:
        raise DataRefused(
            f"{field}.train: holding out {held_out} of {total} examples takes every text or image that they belong to, "
            f"and nothing is left to train on. Lower {field}.validation_limit, or give {field}.validation"
        )
    return train[:wanted], validation[len(validation) - held_out :]


def draw_unlabelled(data: DataSpec, total: int, *, seed: int, excluded: Tensor | None = None) -> Tensor:
    """The rows of a table that a trial uses without their labels: all but the excluded ones, up to the limit.

    From the training table (`unlabelled_from_train`) the rows held out for validation are excluded. The order is that
    of `draw`, so the labelled rows come first, then those that `train_limit` or `train_fraction` leaves out.
    """
    order_n = _permutation(total, seed)
    if excluded is not None:
        order_n = order_n[~torch.isin(order_n, excluded)]
    return order_n[: data.unlabelled_limit]


def _permutation(total: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))


def _held_groups(groups_n: Tensor, order_n: Tensor, held_out: int) -> Tensor:
    """Whether each group is held out: whole groups from the back of the permutation until they have enough rows."""
    sizes_g = torch.bincount(groups_n)
    held_g = torch.zeros(len(sizes_g), dtype=torch.bool)
    found = 0
    for group in groups_n[order_n].flip(0).tolist():
        if found >= held_out:
            break
        if not held_g[group]:
            held_g[group] = True
            found += int(sizes_g[group])
    return held_g
