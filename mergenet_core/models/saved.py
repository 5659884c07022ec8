"""Saved tensors, read by ranges of their entries: no process reads more than it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, KeysView
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


class SavedTensors:
    """Whole tensors in safetensors files, read by ranges of their entries."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._open: dict[str, Any] = {}
        for path in files:
            file = safe_open(path, framework="pt")
            self._open |= dict.fromkeys(file.keys(), file)  # type: ignore[no-untyped-call]

    @property
    def names(self) -> KeysView[str]:
        """The tensors' names."""
        return self._open.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises: `KeyError`."""
        return tuple(self._open[name].get_slice(name).get_shape())

    def __call__(self, name: str, start: int, stop: int) -> Tensor:
        """The entries from `start` to `stop` of a tensor in row-major order. Raises: `KeyError`."""
        file, shape = self._open[name], self.shape(name)
        if len(shape) == 0 or start >= stop:
            whole: Tensor = file.get_tensor(name).reshape(-1) if len(shape) == 0 else torch.empty(0)
            return whole[start:stop]
        width = math.prod(shape[1:])
        first, last = start // width, -(-stop // width)
        rows: Tensor = file.get_slice(name)[first:last].reshape(-1)
        return rows[start - first * width : stop - first * width]
