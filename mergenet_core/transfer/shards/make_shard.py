"""The shard of a parameter, by the storage that its strategy has given it."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from mergenet_core.transfer.shards.fsdp2 import Fsdp2Shard
from mergenet_core.transfer.shards.replicated import ReplicatedShard
from mergenet_core.transfer.shards.tensor_shard import TensorShard
from mergenet_core.transfer.shards.zero3 import Zero3Shard, is_zero3
from mergenet_core.transfer.shards.zero12 import Zero12Shard, is_zero12


def make_shard(parameter: Tensor) -> TensorShard:
    """This process's part of a parameter."""
    if isinstance(parameter, DTensor):
        return Fsdp2Shard(parameter)
    if is_zero3(parameter):
        return Zero3Shard(parameter)
    if is_zero12(parameter):
        return Zero12Shard(parameter)
    return ReplicatedShard(parameter)
