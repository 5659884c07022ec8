"""Sums over processes, several in one exchange where they can wait for one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Traffic:
    """Numbers exchanged between processes and exchanges made so far."""

    numbers: int = 0
    calls: int = 0


BUCKET_NUMBERS = 1_000_000
"""Most numbers in one exchange, unless a single tensor has more."""
TRAFFIC = Traffic()
"""Counts every reduction of a transfer on this process."""

_pending: list[tuple[dist.ProcessGroup, Tensor]] | None = None
"""Tensors to be summed at the end of `batched_sums`; None outside of it."""


@contextmanager
def batched_sums() -> Iterator[None]:
    """Do the sums requested inside in few exchanges at the end; before that, tensors have this process's terms only."""
    global _pending
    assert _pending is None, "batched_sums cannot be nested"
    _pending = []
    try:
        yield
        bucket: list[Tensor] = []
        for index, (group, X) in enumerate(_pending):
            bucket.append(X)
            following = _pending[index + 1] if index + 1 < len(_pending) else None
            if (
                following is None
                or (following[0], following[1].dtype) != (group, X.dtype)
                or sum(waiting.numel() for waiting in bucket) + following[1].numel() > BUCKET_NUMBERS
            ):
                _sum_bucket(bucket, group)
                bucket = []
    finally:
        _pending = None


def sum_over(group: dist.ProcessGroup, X: Tensor) -> Tensor:
    """Sum a tensor over a group's processes in place: at once, or at the end of the enclosing `batched_sums`."""
    if _pending is not None:
        _pending.append((group, X))
    else:
        _sum_bucket([X], group)
    return X


def all_reduce(flat: Tensor, group: dist.ProcessGroup) -> None:
    """One exchange: sum a tensor over a group's processes in place, and count it in `TRAFFIC`."""
    dist.all_reduce(flat, group=group)
    TRAFFIC.numbers += flat.numel()
    TRAFFIC.calls += 1


def _sum_bucket(bucket: list[Tensor], group: dist.ProcessGroup) -> None:
    flat = bucket[0] if len(bucket) == 1 else torch.cat([X.reshape(-1) for X in bucket])
    all_reduce(flat, group)
    if len(bucket) > 1:
        for X, summed in zip(bucket, torch.split(flat, [X.numel() for X in bucket]), strict=True):
            X.copy_(summed.view(X.shape))
