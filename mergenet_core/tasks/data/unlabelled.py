"""The unlabelled inputs of a task: a split of their own, or rows of the training split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.tasks.data.sampling import draw_unlabelled
from mergenet_core.tasks.data.splits import Split, Splits
from mergenet_core.tasks.task import TaskInputs

S = TypeVar("S", bound=Split)


@dataclass(frozen=True)
class Unlabelled(Generic[S]):
    """Rows of a split whose answers, if there are any, are not used."""

    split: S
    rows: Tensor

    def summary(self, **counts: int) -> dict[str, SplitSummary]:
        """The examples used, of how many, the given counts, and the hash of what was read."""
        used: dict[str, int | str] = {"examples": len(self.rows), "sha256": self.split.sha256, **counts}
        return {"unlabelled": {**used, "of": len(self.split)}}


def read_unlabelled(
    inputs: TaskInputs, splits: Splits[S], read: Callable[[str], S], groups_n: Callable[[S], Tensor] | None = None
) -> Unlabelled[S] | None:
    """The unlabelled inputs that the job gives; None where it gives none. `read` reads the split of that name.

    They are never examples of the validation or the test split: a file of their own must be another one than these,
    and of the training split the rows held out for validation are left out, with all rows of their groups.

    Raises: `DataRefused`, and what `read` raises.
    """
    data, seed, train = inputs.data, inputs.seed, splits.train
    if data.unlabelled_from_train:
        held_out = splits.validation_rows if splits.validation is train else None
        if held_out is not None and groups_n is not None:
            groups = groups_n(train)
            held_out = torch.isin(groups, groups[held_out]).nonzero().flatten()
        return Unlabelled(train, draw_unlabelled(data, len(train), seed=seed, excluded=held_out))
    if data.unlabelled is None:
        return None
    split = read("unlabelled")
    for name, other in (("test", splits.test), ("validation", splits.validation)):
        if data.hub is None and split.sha256 == other.sha256:
            raise DataRefused(
                f"{inputs.field}.unlabelled: {data.unlabelled} has the content of the {name} split; give inputs that "
                "are not evaluated on, or unlabelled_from_train"
            )
    return Unlabelled(split, draw_unlabelled(data, len(split), seed=seed))
