"""A process's part of a tensor, one file for each kind of storage: replicated, FSDP2, ZeRO-1 and 2, ZeRO-3.

This is the only code that reads or writes the storage that a training strategy makes.
"""

from mergenet_core.transfer.shards.gather import LiveWeights, gather_whole
from mergenet_core.transfer.shards.make_shard import make_shard
from mergenet_core.transfer.shards.replicated import ReplicatedShard
from mergenet_core.transfer.shards.scalar import ScalarShard
from mergenet_core.transfer.shards.tensor_shard import FlatSlice, TensorShard

__all__ = ["FlatSlice", "LiveWeights", "ReplicatedShard", "ScalarShard", "TensorShard", "gather_whole", "make_shard"]
