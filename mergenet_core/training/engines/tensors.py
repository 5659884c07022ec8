"""The tensors of a model in training, as the pieces that this process holds: copied, saved and loaded.

The same under every strategy; `Engine.shards` and the optimizer's state say which entries a process holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import torch.distributed as dist
from torch import Tensor

from mergenet_core.training.engines.engine import Engine
from mergenet_core.transfer.shards import FlatSlice, gather_whole

Reader: TypeAlias = Callable[[str, int, int], Tensor]
"""Name, start and stop → those entries of a saved tensor, flat."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""The tensors of AdamW and SGD, by torch's names."""


def held(engine: Engine) -> dict[str, FlatSlice]:
    """What this process holds of every saved tensor."""
    return {name: shard.local() for name, shard in engine.shards.items()}


def snapshot(engine: Engine) -> dict[str, FlatSlice]:
    """A copy on the CPU of what this process holds, which later steps do not change."""
    pieces = held(engine).items()
    return {name: FlatSlice(piece.start, piece.flat.detach().to("cpu", copy=True)) for name, piece in pieces}


def restore(engine: Engine, pieces: Mapping[str, FlatSlice]) -> None:
    """Take over the weights of a `snapshot` that this process took."""
    for name, shard in engine.shards.items():
        shard.write_(pieces[name].flat.to(shard.device))
        for copy in shard.copies():
            copy.flat.copy_(gather_whole(shard).view(-1))


def load(engine: Engine, read: Reader) -> None:
    """Take over saved weights; each process reads only what it holds."""
    for name, shard in engine.shards.items():
        shard.load_(functools.partial(read, name))


def moments(engine: Engine) -> dict[str, FlatSlice]:
    """What this process holds of the optimizer's tensors, as `moment/parameter`."""
    found = {}
    for name in engine.parameters:
        for key, value in engine.optimizer_state(name).items():
            found[f"{key}/{name}"] = FlatSlice(engine.shards[name].local().start, value)
    return found


def load_moments(engine: Engine, saved: Collection[str], read: Reader, steps: int) -> None:
    """Take over the optimizer's tensors as they were after so many steps; `saved` has their names."""
    for name in engine.parameters:
        keys = [key for key in _MOMENTS if f"{key}/{name}" in saved]
        if not keys:
            continue
        piece = engine.shards[name].local()
        state = engine.new_optimizer_state(name, keys, steps)
        for key in keys:
            state[key].copy_(read(f"{key}/{name}", piece.start, piece.stop))


def sync_buffers(engine: Engine) -> None:
    """Give every process the main one's buffers: a batch norm's statistics are those of the process's own examples."""
    if engine.world.size > 1:
        for buffer in engine.module.buffers():
            dist.broadcast(buffer, src=0)
