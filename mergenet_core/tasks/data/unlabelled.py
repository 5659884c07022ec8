"""The unlabelled inputs of a classification task: a table of their own, or rows of the training table."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.tasks.data.labels import Labelled
from mergenet_core.tasks.data.sampling import draw_unlabelled
from mergenet_core.tasks.data.splits import Splits
from mergenet_core.tasks.data.tables import Table, read_table
from mergenet_core.tasks.task import TaskInputs


@dataclass(frozen=True)
class Unlabelled:
    """Rows of a table whose labels, if there are any, are not read."""

    table: Table
    rows: Tensor

    def summary(self) -> dict[str, SplitSummary]:
        """The examples used, of how many, and the hash of what was read."""
        return {"unlabelled": {"examples": len(self.rows), "sha256": self.table.sha256, "of": len(self.table)}}


def read_unlabelled(inputs: TaskInputs, column: str, splits: Splits[Labelled]) -> Unlabelled | None:
    """The unlabelled inputs that the job gives; None where it gives none.

    They are never examples of the validation or the test split: a table of their own must be another file than these,
    and of the training table the rows held out for validation are left out.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, seed = inputs.data, inputs.seed
    if data.unlabelled_from_train:
        table = splits.train.table
        held_out = splits.validation_rows if splits.validation is splits.train else None
        rows = draw_unlabelled(data, len(table), seed=seed, excluded=held_out)
        return Unlabelled(table, rows)
    if data.unlabelled is None:
        return None
    table = read_table(inputs, "unlabelled", (column,))
    for name, split in (("test", splits.test), ("validation", splits.validation)):
        if data.hub is None and table.sha256 == split.sha256:
            raise DataRefused(
                f"{table.field}: {data.unlabelled} has the content of the {name} split; give inputs that are not "
                "evaluated on, or unlabelled_from_train"
            )
    return Unlabelled(table, draw_unlabelled(data, len(table), seed=seed))
