"""Reads the header of a safetensors file: names, shapes and metadata. No weights, no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.regular_file import check_regular

HEADER_BYTES_MAX = 100_000_000
"""Longest safetensors header that is read, as in the safetensors library."""


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a safetensors file. Raises: `ModelRefused` for an incomplete file."""
    return _read(path)[0]


def metadata(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's metadata. Raises: `ModelRefused` for an incomplete file."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    check_regular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_BYTES_MAX + 1
        if length > min(HEADER_BYTES_MAX, size - 8):
            raise ModelRefused(f"{path.name} is not a whole safetensors file; download or save it again")
        try:
            entries = json.loads(file.read(length))
            texts = dict(entries.pop("__metadata__", {}))
            if not all(isinstance(text, str) for text in texts.values()):
                raise ValueError("metadata is text")
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
            shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
            sides = [side for shape in shapes.values() for side in shape]
            if any(type(side) is not int or not 0 <= side <= size for side in sides):
                raise ValueError("a side of a shape is no count, or larger than the file")
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            raise ModelRefused(f"{path.name}: its safetensors header cannot be read; save it again") from None
    if 8 + length + end != size:
        raise ModelRefused(
            f"{path.name} is {size:,} bytes, its header counts {8 + length + end:,}; it is incomplete; save it again"
        )
    return shapes, texts
