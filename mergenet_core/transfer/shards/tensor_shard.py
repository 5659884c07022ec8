"""The interface of every kind of storage: which entries of a tensor a process holds, and how to change them.

Every strategy gives a process consecutive entries of a tensor in row-major order: all of them (one process, DDP), whole
rows (FSDP2), or a range that may begin and end within a row (ZeRO).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

READ_CHUNK_ENTRIES = 250_000
"""Entries that are read or checked at a time where a whole shard at once would need too much memory."""


@dataclass(frozen=True)
class FlatSlice:
    """Consecutive entries of a tensor in row-major order, from entry `start` on. Shapes: flat (entries)."""

    start: int
    flat: Tensor

    @property
    def stop(self) -> int:
        """One past the last entry."""
        return self.start + self.flat.numel()


class TensorShard(Protocol):
    """A process's part of a tensor."""

    @property
    def parameter(self) -> object:
        """The tensor as the model has it; tied tensors have the same object."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""

    @property
    def device(self) -> torch.device:
        """The device of this process's entries."""

    @property
    def is_whole(self) -> bool:
        """Whether this process holds every entry."""

    def local(self) -> FlatSlice:
        """This process's entries as the optimizer has them, detached from the graph."""

    def write_(self, flat: Tensor) -> None:
        """Replace this process's entries. `flat` may be the result of `local`, changed in place."""

    def copies(self) -> list[FlatSlice]:
        """Other copies of the tensor on this process, which a writer has to change in the same way."""

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Replace this process's entries and its copies; `read(start, stop)` returns the new entries."""

    def gradient(self) -> Tensor:
        """The gradient of the entries in `local`; zeros where the loss does not depend on them."""

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace the gradient of this process's entries. `flat` may be the result of `gradient`, changed in place."""

    def sum_(self, X: Tensor) -> Tensor:
        """Sum a tensor over the processes that share this one, in place; nothing to do where each holds it whole."""


def load_at_once_(shard: TensorShard, read: Callable[[int, int], Tensor]) -> None:
    """`load_` for storage whose entries are replaced as one tensor."""
    local = shard.local()
    shard.write_(read(local.start, local.stop).to(local.flat))
    for copy in shard.copies():
        copy.flat.copy_(read(copy.start, copy.stop))


def overwrite_(entries: Tensor, flat: Tensor) -> None:
    """Copy `flat` over `entries`, unless both are the same memory."""
    if entries.data_ptr() != flat.data_ptr():
        entries.copy_(flat.detach().view(entries.shape))
