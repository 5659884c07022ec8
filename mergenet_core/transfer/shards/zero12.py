"""A parameter under DeepSpeed's ZeRO-1 or ZeRO-2: whole for computing; the optimizer's weight and gradient in ranges.

The protocols name what DeepSpeed adds to a parameter and this file uses: `hp` is the optimizer's single-precision
(high-precision) weight, `lp` the weight that the model computes with, a `fragment` one process's range.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from mergenet_core.transfer.shards.exchange import sum_over
from mergenet_core.transfer.shards.tensor_shard import FlatSlice, load_at_once_, overwrite_


class FragmentAddress(Protocol):
    """Where a fragment lies within a flat weight."""

    start: int
    numel: int


class FragmentMapping(Protocol):
    """The part of the optimizer's weight on this process that belongs to a parameter."""

    lp_fragment_address: FragmentAddress
    """In the parameter."""
    param_group_index: int
    hp_fragment_address: FragmentAddress
    """In the optimizer's flat weight of the parameter's group."""
    hp_fragment: Tensor
    use_offload: bool

    def get_lp_grad_fragment(self, index_in_param_group: int) -> Tensor:
        """The gradient of the fragment, or of the whole parameter in BF16."""


class ZeroOptimizer(Protocol):
    """DeepSpeed's optimizer under ZeRO-1 and ZeRO-2."""

    norm_for_param_grads: dict[Hashable, Tensor]

    def get_param_id(self, parameter: Zero12Parameter) -> Hashable:
        """The key of a parameter in `norm_for_param_grads`."""


class Zero12Parameter(Protocol):
    """A parameter under ZeRO-1 or ZeRO-2."""

    data: Tensor
    _hp_mapping: FragmentMapping | None
    _dp_group: dist.ProcessGroup
    _zero_optimizer: ZeroOptimizer
    _index_in_param_group: int

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole parameter."""

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""

    def numel(self) -> int:
        """Entries of the whole parameter."""


def is_zero12(parameter: object) -> TypeGuard[Zero12Parameter]:
    """Whether a parameter belongs to an optimizer under ZeRO-1 or ZeRO-2."""
    return hasattr(parameter, "_hp_mapping")


class Zero12Shard:
    """This process's range of the optimizer's weight, which may be empty, and the whole weight for computing."""

    is_whole = False

    def __init__(self, parameter: Zero12Parameter) -> None:
        self.parameter = parameter
        self._group = parameter._dp_group

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.parameter.shape)

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.parameter.device

    def local(self) -> FlatSlice:
        """This process's range of the optimizer's single-precision weight; empty where other processes hold it all.

        An offloaded optimizer keeps its weight in the host's memory: then this is a copy on the parameter's device.
        """
        mapping = self.parameter._hp_mapping
        if mapping is None:
            return FlatSlice(0, self.parameter.data.view(-1)[:0].float())
        return FlatSlice(mapping.lp_fragment_address.start, mapping.hp_fragment.detach().to(self.device))

    def write_(self, flat: Tensor) -> None:
        """Replace this process's range of the optimizer's weight."""
        if self.parameter._hp_mapping is not None:
            overwrite_(self.parameter._hp_mapping.hp_fragment.detach(), flat)

    def copies(self) -> list[FlatSlice]:
        """The whole weight that forward and backward passes compute with."""
        return [FlatSlice(0, self.parameter.data.view(-1))]

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Replace this process's range and the whole weight."""
        load_at_once_(self, read)

    def gradient(self) -> Tensor:
        """The gradient of this process's range, which exists between the backward pass and the step."""
        stored = self._stored_gradient()
        return stored.to(self.device, torch.float32) if stored is not None else self.local().flat

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace the gradient of this process's range."""
        mapping, stored = self.parameter._hp_mapping, self._stored_gradient()
        if mapping is None or stored is None:
            return
        overwrite_(stored, flat)
        if mapping.use_offload:  # clipping uses this norm, which DeepSpeed took before the change
            optimizer = self.parameter._zero_optimizer
            optimizer.norm_for_param_grads[optimizer.get_param_id(self.parameter)] = stored.norm()

    def sum_(self, X: Tensor) -> Tensor:
        """Sum over the processes that hold the parameter."""
        return sum_over(self._group, X)

    def _stored_gradient(self) -> Tensor | None:
        mapping = self.parameter._hp_mapping
        if mapping is None:
            return None
        stored = mapping.get_lp_grad_fragment(self.parameter._index_in_param_group).view(-1)
        if stored.numel() == self.parameter.numel():  # BF16 keeps the whole gradient on every process
            address = mapping.lp_fragment_address
            stored = stored.narrow(0, address.start, address.numel)
        return stored
