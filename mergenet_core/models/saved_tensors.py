"""Tensors in safetensors files: read whole, one at a time, or by ranges of their entries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, KeysView, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.read_model import weight_files


class TensorSlice(Protocol):
    """A tensor in a file, of which rows can be read."""

    def get_shape(self) -> list[int]:
        """Its shape."""

    def __getitem__(self, rows: slice) -> Tensor:
        """Some of its rows."""


class TensorFile(Protocol):
    """An open safetensors file."""

    def keys(self) -> list[str]:
        """The names of its tensors."""

    def get_tensor(self, name: str) -> Tensor:
        """One tensor."""

    def get_slice(self, name: str) -> TensorSlice:
        """One tensor, to be read by rows."""


def open_tensors(paths: Iterable[Path]) -> dict[str, TensorFile]:
    """The open file of each tensor in some files."""
    opened: dict[str, TensorFile] = {}
    for path in paths:
        file: TensorFile = safe_open(path, framework="pt")
        opened |= dict.fromkeys(file.keys(), file)
    return opened


class SavedTensors:
    """Tensors read by ranges of their entries, so that no process reads more than it holds."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = open_tensors(paths)

    @property
    def names(self) -> KeysView[str]:
        """The tensors' names."""
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises: `KeyError`."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def __call__(self, name: str, start: int, stop: int) -> Tensor:
        """The entries from `start` to `stop` of a tensor in row-major order. Raises: `KeyError`."""
        file, shape = self._files[name], self.shape(name)
        if len(shape) == 0 or start >= stop:
            whole = file.get_tensor(name).reshape(-1) if len(shape) == 0 else torch.empty(0)
            return whole[start:stop]
        width = math.prod(shape[1:])
        first, last = start // width, -(-stop // width)
        entries = file.get_slice(name)[first:last].reshape(-1)
        return entries[start - first * width : stop - first * width]


class SourceWeights(Mapping[str, Tensor]):
    """A frozen source's weights in single precision, read one at a time; no model is built, and none is kept."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        """Open the folder's files. Raises: `ModelRefused`."""
        self._folder, self._device = folder, device
        self._files = open_tensors(weight_files(folder))
        self._finite: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        """One weight. Raises: `ModelRefused` where it holds NaN."""
        W = self._files[name].get_tensor(name)
        if name not in self._finite:
            refuse_not_finite([(name, W)], self._folder.name)
            self._finite.add(name)
        return (W.float() if W.is_floating_point() else W).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def refuse_not_finite(weights: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse weights that hold NaN or infinity. Raises: `ModelRefused` naming the first."""
    for name, weight in weights:
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ModelRefused(f"{where}: weight {name} holds NaN or infinity; train or export the model again")
