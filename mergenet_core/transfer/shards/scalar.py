"""A parameter without an axis, which FSDP2 and DeepSpeed do not take: the model holds it with one axis of one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.transfer.shards.tensor_shard import FlatSlice, TensorShard


@dataclass(frozen=True)
class ScalarShard:
    """The shard of the parameter with one axis, under the shape that the parameter is saved with."""

    held: TensorShard

    @property
    def shape(self) -> tuple[int, ...]:
        """No axis."""
        return ()

    @property
    def parameter(self) -> object:
        """The parameter as the model has it, with one axis."""
        return self.held.parameter

    @property
    def device(self) -> torch.device:
        """The device of the entry."""
        return self.held.device

    @property
    def is_whole(self) -> bool:
        """Whether this process holds the entry, as every other does."""
        return self.held.is_whole

    def local(self) -> FlatSlice:
        """The entry, or none where another process holds it."""
        return self.held.local()

    def write_(self, flat: Tensor) -> None:
        """Replace the entry."""
        self.held.write_(flat)

    def copies(self) -> list[FlatSlice]:
        """Other copies of the entry on this process."""
        return self.held.copies()

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Replace the entry and its copies."""
        self.held.load_(read)

    def gradient(self) -> Tensor:
        """The gradient of the entry."""
        return self.held.gradient()

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace the gradient of the entry."""
        self.held.write_gradient_(flat)

    def sum_(self, X: Tensor) -> Tensor:
        """Sum over the processes that share the parameter."""
        return self.held.sum_(X)
