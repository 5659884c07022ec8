"""Tensors that are spread over processes, as plain safetensors files: each process writes the entries it holds.

A file always holds whole tensors, however many processes wrote it, so that any number of processes, any strategy and
`from_pretrained` can read it; no process ever holds more than its own entries. The files must be on storage that all
processes share.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from mergenet_core.training.distributed.world import World
from mergenet_core.transfer.shards import FlatSlice

_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_LENGTH_BYTES = 8
Kind: TypeAlias = tuple[torch.dtype, tuple[int, ...]]
"""A whole tensor's type and shape."""


@dataclass(frozen=True)
class SavedSlice:
    """What one process writes of a tensor: a piece, and the shape of the whole tensor."""

    piece: FlatSlice
    shape: tuple[int, ...]


def save_together(path: Path, shards: Mapping[str, SavedSlice], world: World) -> None:
    """Write one safetensors file from the shards of all processes; every process has to call it.

    A tensor that several processes hold whole must be among the shards of only one of them.
    """
    kinds = _union({name: (shard.piece.flat.dtype, shard.shape) for name, shard in shards.items()}, world)
    header, starts = _layout(kinds)
    if world.main:
        size = sum(kind.itemsize * math.prod(shape) for kind, shape in kinds.values())
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size)
    world.wait()
    with path.open("r+b") as file:
        for name, shard in shards.items():
            flat = shard.piece.flat.detach()
            file.seek(starts[name] + shard.piece.start * flat.element_size())
            file.write(flat.cpu().contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    world.wait()


def _union(kinds: dict[str, Kind], world: World) -> dict[str, Kind]:
    return dict(sorted((name, kind) for known in world.from_all(kinds) for name, kind in known.items()))


def _layout(kinds: Mapping[str, Kind]) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and where each tensor begins in the file."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, offset = {}, 0
    # the widest numbers first, so that every tensor begins at a multiple of its number's size
    for name, (kind, shape) in sorted(kinds.items(), key=lambda entry: -entry[1][0].itemsize):
        stop = offset + kind.itemsize * math.prod(shape)
        described[name] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": [offset, stop]}
        starts[name], offset = offset, stop
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return header, {name: start + len(header) for name, start in starts.items()}
