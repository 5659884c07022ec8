"""A tensor that every process holds whole: on one process, under DDP, and every buffer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mergenet_core.transfer.shards.tensor_shard import FlatSlice, load_at_once_, overwrite_


class ReplicatedShard:
    """All entries of a tensor."""

    is_whole = True

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.parameter.shape)

    @property
    def device(self) -> torch.device:
        """The tensor's device."""
        return self.parameter.device

    def local(self) -> FlatSlice:
        """All entries, detached from the graph."""
        return FlatSlice(0, self.parameter.detach().reshape(-1))

    def write_(self, flat: Tensor) -> None:
        """Replace all entries."""
        overwrite_(self.parameter.detach(), flat)

    def copies(self) -> list[FlatSlice]:
        """None: the model computes with the tensor itself."""
        return []

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Replace all entries by those that `read` returns."""
        load_at_once_(self, read)

    def gradient(self) -> Tensor:
        """The gradient of all entries; zeros where the loss does not depend on them."""
        if self.parameter.grad is None:
            return torch.zeros_like(self.local().flat)
        return self.parameter.grad.detach().reshape(-1)

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace the gradient."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        overwrite_(self.parameter.grad.detach(), flat)

    def sum_(self, X: Tensor) -> Tensor:
        """Nothing to add: what was computed from all entries is complete."""
        return X
