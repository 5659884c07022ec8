"""Where a process holds its part of a weight: the only code that reads or writes the storage that a strategy makes.

Every strategy cuts a weight into consecutive entries of its row-major order: all of them (one process, DDP), whole rows
(FSDP2), or a range that may begin and end within a row (ZeRO).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass
class Traffic:
    """What exchanges between processes have cost so far."""

    numbers: int = 0
    calls: int = 0


BUCKET = 1_000_000
"""Numbers that are exchanged at once at most, unless one product alone has more."""
READ = 250_000
"""Entries of a weight that are read at a time."""
TRAFFIC = Traffic()
"""Counts every reduction that a transfer makes, on this process."""


_waiting: list[tuple[dist.ProcessGroup, Tensor]] | None = None
"""Products to be summed at the end of `together`; None outside."""


@contextmanager
def together() -> Iterator[None]:
    """Sum the products that are made within by few exchanges, at its end; until then each is the process's own part."""
    global _waiting
    assert _waiting is None, "exchanges are gathered once"
    _waiting = []
    try:
        yield
        bucket: list[Tensor] = []
        for place, (group, X) in enumerate(_waiting):
            bucket.append(X)
            after = _waiting[place + 1] if place + 1 < len(_waiting) else None
            if (
                after is None
                or (after[0], after[1].dtype) != (group, X.dtype)
                or sum(one.numel() for one in bucket) + after[1].numel() > BUCKET
            ):
                _sum_bucket(bucket, group)
                bucket = []
    finally:
        _waiting = None


def _sum_bucket(bucket: list[Tensor], group: dist.ProcessGroup) -> None:
    flat = bucket[0] if len(bucket) == 1 else torch.cat([X.reshape(-1) for X in bucket])
    dist.all_reduce(flat, group=group)
    TRAFFIC.numbers += flat.numel()
    TRAFFIC.calls += 1
    if len(bucket) > 1:
        for X, summed in zip(bucket, torch.split(flat, [X.numel() for X in bucket]), strict=True):
            X.copy_(summed.view(X.shape))


@dataclass(frozen=True)
class Piece:
    """The entries from `start` on of a tensor in row-major order; `flat` has one axis."""

    start: int
    flat: Tensor

    @property
    def stop(self) -> int:
        """One past the last entry."""
        return self.start + self.flat.numel()


class Shard:
    """A tensor that this process holds whole: on one process, under DDP, and every buffer."""

    group: dist.ProcessGroup | None = None
    """The processes that hold the other entries; None where there are none."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return tuple(self.parameter.shape)

    @property
    def device(self) -> torch.device:
        """Where its entries are."""
        return self.parameter.device

    def held(self) -> Piece:
        """This process's entries as the optimizer knows them, outside of any graph."""
        return Piece(0, self.parameter.detach().reshape(-1))

    def write_(self, flat: Tensor) -> None:
        """Replace this process's entries; what `held` gave may have been changed in place."""
        _copy_(self.parameter.detach(), flat)

    def followers(self) -> list[Piece]:
        """Other copies that this process holds and that have to follow what is written."""
        return []

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Take every copy's entries from elsewhere; `read` gives those from a start to a stop."""
        held = self.held()
        self.write_(read(held.start, held.stop).to(held.flat))
        for copy in self.followers():
            copy.flat.copy_(read(copy.start, copy.stop))

    def gradient(self) -> Tensor:
        """The gradient's entries where `held` has the weight's; zeros where the loss does not reach it."""
        if self.parameter.grad is None:
            return torch.zeros_like(self.held().flat)
        return self.parameter.grad.detach().reshape(-1)

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace this process's entries of the gradient; what `gradient` gave may have been changed in place."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        _copy_(self.parameter.grad.detach(), flat)

    def sum_(self, X: Tensor) -> Tensor:
        """Add up what each process made of its own entries; nothing to do where one holds them all."""
        if self.group is not None and _waiting is not None:
            _waiting.append((self.group, X))
        elif self.group is not None:
            _sum_bucket([X], self.group)
        return X


class RowShard(Shard):
    """A parameter of FSDP2: each process holds consecutive rows."""

    parameter: Any

    def __init__(self, parameter: DTensor) -> None:
        super().__init__(parameter)
        self.group = parameter.device_mesh.get_group()
        rows = -(-parameter.shape[0] // dist.get_world_size(self.group))
        width = parameter.shape.numel() // max(1, parameter.shape[0])
        self._start = min(rows * dist.get_rank(self.group), parameter.shape[0]) * width

    def held(self) -> Piece:
        """The process's own rows."""
        return Piece(self._start, self.parameter.to_local().detach().reshape(-1))

    def write_(self, flat: Tensor) -> None:
        """Replace them."""
        _copy_(self.parameter.to_local().detach(), flat)

    def load_(self, read: Callable[[int, int], Tensor]) -> None:
        """Take them from elsewhere, a part at a time: what is read is never there a second time as a whole."""
        held = self.held()
        for start in range(held.start, held.stop, READ):
            stop = min(start + READ, held.stop)
            held.flat[start - held.start : stop - held.start].copy_(read(start, stop))

    def gradient(self) -> Tensor:
        """Their gradient."""
        if self.parameter.grad is None:
            return torch.zeros_like(self.held().flat)
        local: Tensor = self.parameter.grad.to_local().detach().reshape(-1)
        return local

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace their gradient."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        _copy_(self.parameter.grad.to_local().detach(), flat)


class Zero3Shard(Shard):
    """A parameter of ZeRO-3: each process holds a range of entries, padded at the end, beside a compute copy."""

    parameter: Any

    def __init__(self, parameter: Any) -> None:
        super().__init__(parameter)
        self.group = parameter.ds_process_group
        size = parameter.ds_tensor.numel()
        self._start = min(dist.get_rank(self.group) * size, parameter.ds_numel)
        self._count = min(self._start + size, parameter.ds_numel) - self._start

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return tuple(self.parameter.ds_shape)

    @property
    def device(self) -> torch.device:
        """Where its entries are."""
        device: torch.device = self.parameter.ds_tensor.device
        return device

    def held(self) -> Piece:
        """The process's range of the optimizer's single-precision weight."""
        from deepspeed.utils import safe_get_local_fp32_param

        return Piece(self._start, safe_get_local_fp32_param(self.parameter).detach()[: self._count])

    def write_(self, flat: Tensor) -> None:
        """Replace it, and the range of the compute copy."""
        from deepspeed.utils import safe_set_local_fp32_param

        padded = self._padded(flat)
        safe_set_local_fp32_param(self.parameter, padded)
        self.parameter.ds_tensor.data.copy_(padded)

    def followers(self) -> list[Piece]:
        """The gathered copy of a parameter so small that it stays gathered."""
        partitioned = self.parameter.ds_status.name != "AVAILABLE"
        if partitioned or self.parameter.data.data_ptr() == self.parameter.ds_tensor.data_ptr():
            return []
        return [Piece(0, self.parameter.data.view(-1))]

    def gradient(self) -> Tensor:
        """The gradient of the process's range."""
        from deepspeed.utils import safe_get_local_grad

        kept: Tensor = safe_get_local_grad(self.parameter)
        return kept[: self._count]

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace it."""
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(self.parameter, self._padded(flat))

    def _padded(self, flat: Tensor) -> Tensor:
        padding: int = self.parameter.ds_tensor.numel() - self._count
        return torch.nn.functional.pad(flat, (0, padding)) if padding else flat


class ZeroShard(Shard):
    """A parameter of ZeRO-1 or 2: whole for computing, its optimizer's weight and gradient a range on each process."""

    parameter: Any

    def __init__(self, parameter: Any, group: dist.ProcessGroup) -> None:
        super().__init__(parameter)
        self.group = group

    def held(self) -> Piece:
        """The process's range of the optimizer's single-precision weight; empty where others hold all of it.

        An optimizer that is offloaded has it in the host's memory: then this is a copy where products are made.
        """
        mapping = self.parameter._hp_mapping
        if mapping is None:
            return Piece(0, self.parameter.data.view(-1)[:0].float())
        return Piece(mapping.lp_fragment_address.start, mapping.hp_fragment.detach().to(self.device))

    def write_(self, flat: Tensor) -> None:
        """Replace it."""
        if self.parameter._hp_mapping is not None:
            _copy_(self.parameter._hp_mapping.hp_fragment.detach(), flat)

    def followers(self) -> list[Piece]:
        """The whole weight that forward and backward passes compute with."""
        return [Piece(0, self.parameter.data.view(-1))]

    def gradient(self) -> Tensor:
        """The gradient of the process's range, there between the backward pass and the step."""
        kept = self._kept_gradient()
        return kept.to(self.device, torch.float32) if kept is not None else self.held().flat

    def write_gradient_(self, flat: Tensor) -> None:
        """Replace it."""
        kept = self._kept_gradient()
        if kept is None:
            return
        _copy_(kept, flat)
        if self.parameter._hp_mapping.use_offload:  # else clipping goes by the norm from before
            optimizer = self.parameter._zero_optimizer
            optimizer.norm_for_param_grads[optimizer.get_param_id(self.parameter)] = kept.norm()

    def _kept_gradient(self) -> Tensor | None:
        mapping = self.parameter._hp_mapping
        if mapping is None:
            return None
        kept: Tensor = mapping.get_lp_grad_fragment(self.parameter._index_in_param_group).view(-1)
        if kept.numel() == self.parameter.numel():  # BF16 keeps the whole gradient on every process
            address = mapping.lp_fragment_address
            kept = kept.narrow(0, address.start, address.numel)
        return kept


def _copy_(entries: Tensor, flat: Tensor) -> None:
    """Replace entries, unless it is they that were changed."""
    if entries.data_ptr() != flat.data_ptr():
        entries.copy_(flat.detach().view(entries.shape))


def whole_of(shard: Shard) -> Tensor:
    """The whole tensor, on every process: for a moment one process holds all of it. Every process has to call it."""
    held = shard.held()
    entries = torch.zeros(torch.Size(shard.shape).numel(), dtype=held.flat.dtype, device=held.flat.device)
    entries[held.start : held.stop] = held.flat
    return shard.sum_(entries).view(shard.shape)


class LiveWeights(Mapping[str, Tensor]):
    """The weights of a model in training, each made whole when it is asked for, by every process at once."""

    def __init__(self, shards: Mapping[str, Shard]) -> None:
        self._shards = shards

    def __getitem__(self, name: str) -> Tensor:
        return whole_of(self._shards[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def shard_of(parameter: Any) -> Shard:
    """How this process holds a parameter, by what its strategy has made of it."""
    if isinstance(parameter, DTensor):
        return RowShard(parameter)
    if hasattr(parameter, "ds_id"):
        return Zero3Shard(parameter)
    if hasattr(parameter, "_hp_mapping"):
        return ZeroShard(parameter, parameter._dp_group)
    return Shard(parameter)
