"""The three splits of a task's data, and the rows of each that a trial uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mergenet_core.records.provenance import SplitSummary
from mergenet_core.tasks.data.sampling import draw
from mergenet_core.tasks.task import TaskInputs


class Split(Protocol):
    """A split as it was read."""

    @property
    def sha256(self) -> str:
        """The hash of the files that were read."""

    def __len__(self) -> int:
        """The rows that limits count: texts, images or questions."""


S = TypeVar("S", bound=Split)
T = TypeVar("T", bound=Split)
E = TypeVar("E")


@dataclass(frozen=True)
class Splits(Generic[S]):
    """What a trial learns from, selects by and is measured on; `validation` is `train` where examples are held out."""

    train: S
    validation: S
    test: S
    train_rows: Tensor
    validation_rows: Tensor
    test_rows: Tensor

    def each(self, make: Callable[[S, Tensor], E]) -> tuple[E, E, E]:
        """Call `make` with each split and its rows: train, validation, test."""
        return (
            make(self.train, self.train_rows),
            make(self.validation, self.validation_rows),
            make(self.test, self.test_rows),
        )

    def map(self, change: Callable[[S], T]) -> Splits[T]:
        """The same rows of changed splits."""
        train, test = change(self.train), change(self.test)
        validation = train if self.validation is self.train else change(self.validation)
        return Splits(train, validation, test, self.train_rows, self.validation_rows, self.test_rows)

    def summary(self, **counts: tuple[int, int, int]) -> dict[str, SplitSummary]:
        """Per split the examples used, the given counts (train, validation, test) and the hash of what was read."""

        def used(split: S, rows: Tensor) -> dict[str, int | str]:
            return {"examples": len(rows), "sha256": split.sha256}

        found = dict(zip(("train", "validation", "test"), self.each(used), strict=True))
        for index, split in enumerate(found.values()):
            split.update({name: count[index] for name, count in counts.items()})
        found["train"]["of"] = len(self.train)
        return {**found}


def read_splits(
    inputs: TaskInputs, read: Callable[[str], S], groups_n: Callable[[S], Tensor] | None = None
) -> Splits[S]:
    """Read the splits by their names, and draw the trial's examples and those held out for validation by its seed.

    Rows of one group, such as the questions on one text, are never both trained on and held out.
    Raises: `DataRefused` where nothing is left to train on, and what `read` raises.
    """
    train, test = read("train"), read("test")
    groups = None if groups_n is None else groups_n(train)
    train_rows, validation_rows = draw(inputs, len(train), groups_n=groups)
    validation = train
    if inputs.data.validation is not None:
        validation = read("validation")
        validation_rows = torch.arange(len(validation))
    return Splits(train, validation, test, train_rows, validation_rows, torch.arange(len(test)))
