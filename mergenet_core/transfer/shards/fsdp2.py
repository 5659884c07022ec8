"""A parameter under FSDP2 (a DTensor): each process holds consecutive rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mergenet_core.transfer.shards.exchange import sum_over
from mergenet_core.transfer.shards.tensor_shard import READ_CHUNK_ENTRIES, FlatSlice, overwrite_


class Fsdp2Shard:
    """This process's rows of a DTensor."""

    is_whole = False

    def __init__(self, parameter: DTensor) -> None:
        self.parameter = parameter
        self._group = parameter.device_mesh.get_group()
        rows = -(-parameter.shape[0] // dist.get_world_size(self._group))
        width = parameter.shape.numel() // max(1, parameter.shape[0])
        self._start = min(rows * dist.get_rank(self._group), parameter.shape[0]) * width

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.parameter.shape)

    @property
    def device(self) -> torch.device:
        """The device of this process's rows."""
        return self.parameter.device

    def local(self) -> FlatSlice:
        """This process's rows."""
        return FlatSlice(self._start, self.parameter.to_local().detach().reshape(-1))

    def write_(self, flat: Tensor) -> None:
        """Replace this process's rows."""
        overwrite_(self.parameter.to_local().detach(), flat)

    def copies(self) -> list[FlatSlice]:
        """None: the gathered copy that a block computes with is made anew at each step."""
        return []

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Replace this process's rows chunk by chunk, so that they are never in memory a second time."""
        local = self.local()
        for start in range(local.start, local.stop, READ_CHUNK_ENTRIES):
            stop = min(start + READ_CHUNK_ENTRIES, local.stop)
            local.flat[start - local.start : stop - local.start].copy_(read(start, stop))

    def gradient(self) -> Tensor:
        """The gradient of this process's rows; zeros where the loss does not depend on them."""
        gradient = self._own_gradient()
        return torch.zeros_like(self.local().flat) if gradient is None else gradient.reshape(-1)

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace the gradient of this process's rows."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        gradient = self._own_gradient()
        assert gradient is not None
        overwrite_(gradient, flat)

    def sum_(self, X: Tensor) -> Tensor:
        """Sum over the processes that hold the parameter."""
        return sum_over(self._group, X)

    def _own_gradient(self) -> Tensor | None:
        gradient = self.parameter.grad
        if gradient is None:
            return None
        assert isinstance(gradient, DTensor)
        return gradient.to_local().detach()
