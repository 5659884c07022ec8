"""A frozen source's weights: from its pack, as a pack of some rank would give them, or as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mergenet_core.model_files.knowledge_pack import PackDtype, read_pack
from mergenet_core.models.saved_tensors import SourceWeights, open_tensors, refuse_not_finite
from mergenet_core.models.stored_factors import StoredTensors, compose, own_copy, to_stored, unscaled_factors
from mergenet_core.spec.job import SourceSpec


class FactoredWeights(Mapping[str, Tensor]):
    """A source's weights composed from stored factors, one at a time; `factors` gives the factors alone.

    They are those of the last checkpoint of a series; `at` gives another's.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str, int], tuple[StoredTensors, tuple[int, ...]]],
        device: torch.device | None,
        checkpoints: int = 1,
        at: int | None = None,
    ) -> None:
        self._names, self._read, self._device = names, read, device
        self.checkpoints = checkpoints
        self._at = checkpoints - 1 if at is None else min(at, checkpoints - 1)

    def at(self, checkpoint: int) -> FactoredWeights:
        """The weights at one of the checkpoints, from 0; past the end it is the last."""
        return FactoredWeights(self._names, self._read, self._device, self.checkpoints, checkpoint)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The factors B and A of a weight; None where it is stored whole."""
        stored = self._read(name, self._at)[0]
        if len(stored) == 1:
            return None
        B_mr, A_rn = unscaled_factors(stored)
        return B_mr.to(self._device), A_rn.to(self._device)

    def __getitem__(self, name: str) -> Tensor:
        return compose(*self._read(name, self._at)).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_pack(path: Path, device: torch.device | None = None) -> FactoredWeights:
    """The weights stored in a pack. Raises: `ModelRefused`, also where a weight that is read holds NaN."""
    pack = read_pack(path)
    files = open_tensors([path])

    def read(name: str, checkpoint: int) -> tuple[StoredTensors, tuple[int, ...]]:
        tensor = pack.tensors[name]
        stored = {key: own_copy(files[key].get_tensor(key)) for key in tensor.entries(name, checkpoint, pack.dtype)}
        refuse_not_finite(stored.items(), path.name)
        return tuple(stored.values()), tensor.shape

    return FactoredWeights(tuple(pack.tensors), read, device, pack.checkpoints)


def at_rank(
    weights: Mapping[str, Tensor], rank: int, dtype: PackDtype, device: torch.device | None = None
) -> FactoredWeights:
    """Weights as a pack of rank r and dtype gives them, bit for bit."""

    @functools.cache
    def read(name: str, checkpoint: int) -> tuple[StoredTensors, tuple[int, ...]]:
        W = weights[name]
        return to_stored(W, rank, dtype), tuple(W.shape)

    return FactoredWeights(tuple(weights), read, device)


def open_source(spec: SourceSpec, path: Path, device: torch.device | None) -> Mapping[str, Tensor]:
    """A frozen source's weights: from its pack, at a rank, or as they are. Raises: `ModelRefused`."""
    if spec.model.pack is not None:
        return open_pack(path, device)
    if spec.rank is not None:
        return at_rank(SourceWeights(path), spec.rank, spec.dtype, device)
    return SourceWeights(path, device)


def open_states(
    spec: SourceSpec, path: Path, kept: Sequence[Path], device: torch.device | None
) -> Sequence[Mapping[str, Tensor]]:
    """The states of a source's trajectory, oldest first: the checkpoints of its pack, or the folders of its training.

    Raises: `ModelRefused`.
    """
    if spec.mode != "trajectory":
        return ()
    if spec.model.pack is not None:
        pack = open_pack(path, device)
        return [pack.at(checkpoint) for checkpoint in range(pack.checkpoints)]
    return [open_source(spec, folder, device) for folder in kept]


def source_rank(spec: SourceSpec, path: Path) -> int | None:
    """The rank at which a source's matrices are used; None where they are used whole. Raises: `ModelRefused`."""
    return read_pack(path).rank if spec.model.pack is not None else spec.rank
