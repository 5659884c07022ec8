"""A parameter under DeepSpeed's ZeRO-3: each process holds a range of entries, padded at the end, and a compute copy.

`Zero3Parameter` names what DeepSpeed adds to a parameter and this file uses.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from mergenet_core.transfer.shards.exchange import sum_over
from mergenet_core.transfer.shards.tensor_shard import FlatSlice, load_at_once_


class Zero3Parameter(Protocol):
    """A parameter that ZeRO-3 has partitioned."""

    data: Tensor
    """The whole tensor while it is gathered."""
    ds_tensor: Tensor
    """This process's range in the precision that the model computes with, padded."""
    ds_numel: int
    ds_shape: torch.Size
    ds_status: Enum
    ds_process_group: dist.ProcessGroup


def is_zero3(parameter: object) -> TypeGuard[Zero3Parameter]:
    """Whether ZeRO-3 has partitioned a parameter."""
    return hasattr(parameter, "ds_id")


class Zero3Shard:
    """This process's range of a parameter that ZeRO-3 has partitioned."""

    is_whole = False

    def __init__(self, parameter: Zero3Parameter) -> None:
        self.parameter = parameter
        self._group = parameter.ds_process_group
        size = parameter.ds_tensor.numel()
        self._start = min(dist.get_rank(self._group) * size, parameter.ds_numel)
        self._count = min(self._start + size, parameter.ds_numel) - self._start

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.parameter.ds_shape)

    @property
    def device(self) -> torch.device:
        """The device of this process's range."""
        return self.parameter.ds_tensor.device

    def local(self) -> FlatSlice:
        """This process's range of the optimizer's single-precision weight."""
        from deepspeed.utils import safe_get_local_fp32_param

        weight: Tensor = safe_get_local_fp32_param(self.parameter)
        return FlatSlice(self._start, weight.detach()[: self._count])

    def write_(self, flat: Tensor) -> None:
        """Replace this process's range, also in the compute copy."""
        from deepspeed.utils import safe_set_local_fp32_param

        padded = self._padded(flat)
        safe_set_local_fp32_param(self.parameter, padded)
        self.parameter.ds_tensor.data.copy_(padded)

    def copies(self) -> list[FlatSlice]:
        """The gathered copy of a parameter so small that DeepSpeed keeps it gathered."""
        partitioned = self.parameter.ds_status.name != "AVAILABLE"
        if partitioned or self.parameter.data.data_ptr() == self.parameter.ds_tensor.data_ptr():
            return []
        return [FlatSlice(0, self.parameter.data.view(-1))]

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Replace this process's range and the gathered copy."""
        load_at_once_(self, read)

    def gradient(self) -> Tensor:
        """The gradient of this process's range."""
        from deepspeed.utils import safe_get_local_grad

        gradient: Tensor = safe_get_local_grad(self.parameter)
        return gradient[: self._count]

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace the gradient of this process's range."""
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(self.parameter, self._padded(flat))

    def sum_(self, X: Tensor) -> Tensor:
        """Sum over the processes that hold the parameter."""
        return sum_over(self._group, X)

    def _padded(self, flat: Tensor) -> Tensor:
        padding = self.parameter.ds_tensor.numel() - self._count
        return torch.nn.functional.pad(flat, (0, padding)) if padding else flat
