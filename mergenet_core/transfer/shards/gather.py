"""Whole tensors from the shards of all processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mergenet_core.transfer.shards.tensor_shard import TensorShard


def gather_whole(shard: TensorShard) -> Tensor:
    """The whole tensor, held by every process; every process has to call this at the same point."""
    local = shard.local()
    entries = torch.zeros(torch.Size(shard.shape).numel(), dtype=local.flat.dtype, device=local.flat.device)
    entries[local.start : local.stop] = local.flat
    return shard.sum_(entries).view(shard.shape)


class LiveWeights(Mapping[str, Tensor]):
    """The weights of a model in training, each gathered when it is looked up, by every process at the same point."""

    def __init__(self, shards: Mapping[str, TensorShard]) -> None:
        self._shards = shards

    def __getitem__(self, name: str) -> Tensor:
        return gather_whole(self._shards[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)
