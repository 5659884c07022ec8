"""Tables with one label per row: the label space of the training split, and each row's label as a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import datasets
import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.tasks.data.splits import Splits, read_splits
from mergenet_core.tasks.data.tables import Table, read_table
from mergenet_core.tasks.task import TaskInputs


@dataclass(frozen=True)
class Named:
    """A table with the name of each row's label."""

    table: Table
    names_n: list[str]

    @property
    def sha256(self) -> str:
        """The hash of the table's files."""
        return self.table.sha256

    def __len__(self) -> int:
        """Rows of the table."""
        return len(self.names_n)


@dataclass(frozen=True)
class Labelled:
    """A table with the number of each row's label."""

    table: Table
    labels_n: Tensor

    @property
    def sha256(self) -> str:
        """The hash of the table's files."""
        return self.table.sha256

    def __len__(self) -> int:
        """Rows of the table."""
        return len(self.labels_n)


def read_labelled(inputs: TaskInputs, column: str) -> tuple[Splits[Labelled], tuple[str, ...]]:
    """The splits of a table with the named column and a label column, and the label space.

    Raises: `DataRefused`, also for labels that do not occur in the training split; `PathRefused`.
    """
    data = inputs.data

    def read(split: str) -> Named:
        table = read_table(inputs, split, (column, data.label))
        return Named(table, _names(table, data.label))

    splits = read_splits(inputs, read)
    labels = _label_space(splits.train, data.label)
    return splits.map(lambda split: Labelled(split.table, _numbers(split, labels))), labels


def _label_space(train: Named, column: str) -> tuple[str, ...]:
    present = set(train.names_n)
    if len(present) < 2:
        raise DataRefused(
            f"{train.table.field}: every example is labelled {present.pop()!r}; at least two labels are needed"
        )
    feature = train.table.rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    whole = all(name.removeprefix("-").isdecimal() for name in present)
    return tuple(sorted(present, key=int) if whole else sorted(present))


def _numbers(split: Named, labels: tuple[str, ...]) -> Tensor:
    numbers = {name: number for number, name in enumerate(labels)}
    unknown = sorted(set(split.names_n) - set(labels))
    if unknown:
        raise DataRefused(
            f"{split.table.field}: label {unknown[0]!r} does not occur in the training split, whose labels are "
            f"{', '.join(labels[:10])}{', …' if len(labels) > 10 else ''}; give splits with the same labels"
        )
    return torch.tensor([numbers[name] for name in split.names_n])


def _names(table: Table, column: str) -> list[str]:
    feature = table.rows.features[column]
    classes = feature.names if isinstance(feature, datasets.ClassLabel) else None
    names = []
    for row, value in enumerate(table.rows[column][:]):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise DataRefused(f"{table.field}: row {row} has no label ({value}); remove the row or label it")
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        if not isinstance(whole, (str, int)):
            raise DataRefused(f"{table.field}: row {row} has label {value!r}; a label is a string or a whole number")
        if classes is not None and not 0 <= int(whole) < len(classes):
            raise DataRefused(f"{table.field}: row {row} is unlabelled ({value}); give a split with labels")
        names.append(classes[int(whole)] if classes is not None else str(whole))
    return names
