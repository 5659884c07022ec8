"""A source told by its factors: read from a pack, or made of the source itself at the same rank, with the same bits.

Shape suffixes: m rows, n columns, r rank.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergenet_core import __version__
from mergenet_core.errors import ModelRefused, PathRefused
from mergenet_core.model_files.knowledge_pack import (
    FILE_KEY,
    FILES,
    MANIFEST_KEY,
    VERSION,
    Pack,
    PackDtype,
    PackedTensor,
    as_matrix,
    read_pack,
)
from mergenet_core.model_files.read_model import inspect_model, weight_files
from mergenet_core.models.loading import SourceWeights, refuse_not_finite
from mergenet_core.spec.job import SourceSpec
from mergenet_core.storage.published_folder import sha256
from mergenet_core.transfer.reencode import factorize
from mergenet_core.transfer.views import view_of

Parts = tuple[Tensor, ...]
"""A weight's factors B and A, as int8 with their scales, or the weight alone."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.float16}
"""Of what is not stored as int8."""
_INT8_MOST = 127


def reencoded(W: Tensor, rank: int, dtype: PackDtype) -> Parts:
    """A weight as a pack keeps it: B A of rank min(r, m, n), or whole where that takes no more numbers.

    On one thread of the CPU, so that the same weight gives the same bits whatever else the process is set to.
    """
    if W.ndim < 2 or not W.is_floating_point():
        return (_own(W),)
    m, n = as_matrix(tuple(W.shape))
    if rank * (m + n) >= m * n:
        return (_own(W.to(_DTYPES[dtype])),)
    with _one_thread():
        B_mr, A_rn = factorize(view_of(W.reshape(m, n).contiguous()), rank)
    if dtype == "int8":
        scales_2r = torch.stack([B_mr.abs().amax(0), A_rn.abs().amax(1)]).clamp(min=1e-30) / _INT8_MOST
        rounded = (B_mr / scales_2r[0]).round(), (A_rn / scales_2r[1][:, None]).round()
        return _own(rounded[0].to(torch.int8)), _own(rounded[1].to(torch.int8)), scales_2r
    return _own(B_mr.to(_DTYPES[dtype])), _own(A_rn.to(_DTYPES[dtype]))


def composed(parts: Parts, shape: tuple[int, ...]) -> Tensor:
    """The weight that a pack stands for, W = B A, in single precision."""
    if len(parts) == 1:
        return parts[0].float() if parts[0].is_floating_point() else parts[0]
    B_mr, A_rn = factors_in(parts)
    with _one_thread():
        return (B_mr @ A_rn).view(shape)


def factors_in(parts: Parts) -> tuple[Tensor, Tensor]:
    """B and A in single precision."""
    B_mr, A_rn = parts[0].float(), parts[1].float()
    if len(parts) == 2:
        return B_mr, A_rn
    return B_mr * parts[2][0], A_rn * parts[2][1][:, None]


class PackedWeights(Mapping[str, Tensor]):
    """A source's weights as its factors give them, composed one at a time; `factors` gives the factors alone.

    Of a series of checkpoints, the last one; `at` gives another.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str, int], tuple[Parts, tuple[int, ...]]],
        device: torch.device | None,
        checkpoints: int = 1,
        at: int | None = None,
    ) -> None:
        self._names, self._read, self._device = names, read, device
        self.checkpoints = checkpoints
        self._at = checkpoints - 1 if at is None else min(at, checkpoints - 1)

    def at(self, checkpoint: int) -> PackedWeights:
        """The weights at one of the checkpoints, from 0; past the end it is the last."""
        return PackedWeights(self._names, self._read, self._device, self.checkpoints, checkpoint)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The factors B and A of a weight; None where it is kept whole."""
        parts = self._read(name, self._at)[0]
        if len(parts) == 1:
            return None
        B_mr, A_rn = factors_in(parts)
        return B_mr.to(self._device), A_rn.to(self._device)

    def __getitem__(self, name: str) -> Tensor:
        return composed(*self._read(name, self._at)).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_pack(path: Path, device: torch.device | None = None) -> PackedWeights:
    """The weights that a pack stands for. Raises: `ModelRefused`, also where a weight that is read holds NaN."""
    pack = read_pack(path)
    file: Any = safe_open(path, framework="pt")

    def read(name: str, checkpoint: int) -> tuple[Parts, tuple[int, ...]]:
        tensor = pack.tensors[name]
        parts = {key: _own(file.get_tensor(key)) for key in tensor.parts(name, checkpoint, pack.dtype)}
        refuse_not_finite(parts.items(), path.name)
        return tuple(parts.values()), tensor.shape

    return PackedWeights(tuple(pack.tensors), read, device, pack.checkpoints)


def at_rank(folder: Path, rank: int, dtype: PackDtype, device: torch.device | None = None) -> PackedWeights:
    """A saved model's weights as a pack of rank r and dtype gives them, bit for bit. Raises: `ModelRefused`."""
    weights = SourceWeights(folder)

    @functools.cache
    def read(name: str, checkpoint: int) -> tuple[Parts, tuple[int, ...]]:
        W = weights[name]
        return reencoded(W, rank, dtype), tuple(W.shape)

    return PackedWeights(tuple(weights), read, device)


def open_source(spec: SourceSpec, place: Path, device: torch.device | None) -> Mapping[str, Tensor]:
    """A frozen source's weights: from its pack, at a rank, or as they are. Raises: `ModelRefused`."""
    if spec.model.pack is not None:
        return open_pack(place, device)
    if spec.rank is not None:
        return at_rank(place, spec.rank, spec.dtype, device)
    return SourceWeights(place, device)


def open_states(
    spec: SourceSpec, place: Path, kept: Sequence[Path], device: torch.device | None
) -> Sequence[Mapping[str, Tensor]]:
    """The states of a source's trajectory, the oldest first: those of its pack, or in folders that its training left.

    Raises: `ModelRefused`.
    """
    if spec.mode != "trajectory":
        return ()
    if spec.model.pack is not None:
        pack = open_pack(place, device)
        return [pack.at(checkpoint) for checkpoint in range(pack.checkpoints)]
    return [open_source(spec, folder, device) for folder in kept]


def source_rank(spec: SourceSpec, place: Path) -> int | None:
    """The rank that a source is told at; None where it is told whole. Raises: `ModelRefused`."""
    return read_pack(place).rank if spec.model.pack is not None else spec.rank


def write_pack(folders: Sequence[Path], out: Path, *, rank: int, dtype: PackDtype = "float32") -> Pack:
    """Keep the factors of a saved model, or of a series of its checkpoints, in one file; whole or absent.

    Equation: W ≈ B A, the best approximation of rank r in the Frobenius norm. Memory: one weight, and the factors.
    Raises: `ModelRefused` for a model that cannot be read, checkpoints of unlike models, or numbers beyond `dtype`;
    `PathRefused` where there is no folder to write into.
    """
    if not out.parent.is_dir():
        raise PathRefused(f"{out}: there is no folder {out.parent} to write the pack into; make it, or name another")
    facts = [inspect_model(folder) for folder in folders]
    for folder, found in zip(folders, facts, strict=True):
        if found.shapes != facts[0].shapes or found.vocabulary != facts[0].vocabulary:
            raise ModelRefused(
                f"{folder.name} is no checkpoint of the same model as {folders[0].name}: shapes or vocabulary differ"
            )
    kept: dict[str, Tensor] = {}
    described: dict[str, PackedTensor] = {}
    for checkpoint, folder in enumerate(folders):
        weights = SourceWeights(folder)
        for name, W in weights.items():
            parts = reencoded(W, rank, dtype)
            refuse_not_finite([(f"{name} as {dtype}", part) for part in parts], folder.name)
            energies = described[name].energy if name in described else ()
            described[name] = PackedTensor(
                shape=tuple(W.shape),
                rank=parts[0].shape[1] if len(parts) > 1 else None,
                energy=(*energies, _energy_kept(W, parts)),
            )
            kept |= zip(described[name].parts(name, checkpoint, dtype), parts, strict=True)
    vocabulary = facts[-1].vocabulary
    pack = Pack(
        version=VERSION,
        code=__version__,
        rank=rank,
        dtype=dtype,
        checkpoints=len(folders),
        config=dict(facts[-1].config),
        labels=facts[-1].labels,
        vocabulary=None if vocabulary is None else vocabulary.sha256,
        source=tuple({path.name: sha256(path) for path in weight_files(folder)} for folder in folders),
        tensors=described,
    )
    texts = {FILE_KEY + name: path.read_text("utf-8") for name in FILES if (path := folders[-1] / name).is_file()}
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        save_file(kept, draft, metadata={MANIFEST_KEY: pack.model_dump_json(), **texts})
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return pack


def _own(X: Tensor) -> Tensor:
    """A copy by rows in memory of torch's own: where and how numbers lie decides the last bits of their products."""
    return X.clone(memory_format=torch.contiguous_format)


def _energy_kept(W: Tensor, parts: Parts) -> float:
    """1 − ‖W − B A‖² / ‖W‖², after rounding."""
    if not W.is_floating_point() or not W.any():
        return 1.0
    lost = (W - composed(parts, tuple(W.shape))).double().square().sum() / W.double().square().sum()
    return 1.0 - float(lost)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
