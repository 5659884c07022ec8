"""Writes a knowledge pack: the factors of a saved model, or of a series of its checkpoints, in one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mergenet_core import __version__
from mergenet_core.model_files.knowledge_pack import (
    FILE_KEY,
    FILES,
    MANIFEST_KEY,
    VERSION,
    Pack,
    PackDtype,
    PackedTensor,
)
from mergenet_core.model_files.pack_sources import inspect_sources
from mergenet_core.model_files.read_model import weight_files
from mergenet_core.models.saved_tensors import SourceWeights, refuse_not_finite
from mergenet_core.models.stored_factors import energy_kept, to_stored
from mergenet_core.storage.published_folder import sha256


def write_pack(folders: Sequence[Path], out: Path, *, rank: int, dtype: PackDtype = "float32") -> Pack:
    """Write the factors of a saved model, or of a series of its checkpoints; the file is complete or absent.

    Equation: W ≈ B A, the best approximation of rank r in the Frobenius norm. Memory: one weight, and the factors.
    Raises: `ModelRefused` for a model that cannot be read, checkpoints of different models, or numbers beyond `dtype`;
    `PathRefused` where there is no folder to write into.
    """
    infos = inspect_sources(folders, out)
    tensors: dict[str, Tensor] = {}
    described: dict[str, PackedTensor] = {}
    for checkpoint, folder in enumerate(folders):
        weights = SourceWeights(folder)
        for name, W in weights.items():
            stored = to_stored(W, rank, dtype)
            refuse_not_finite([(f"{name} as {dtype}", part) for part in stored], folder.name)
            energies = described[name].energy if name in described else ()
            described[name] = PackedTensor(
                shape=tuple(W.shape),
                rank=stored[0].shape[1] if len(stored) > 1 else None,
                energy=(*energies, energy_kept(W, stored)),
            )
            tensors |= zip(described[name].entries(name, checkpoint, dtype), stored, strict=True)
    vocabulary = infos[-1].vocabulary
    pack = Pack(
        version=VERSION,
        code=__version__,
        rank=rank,
        dtype=dtype,
        checkpoints=len(folders),
        config=dict(infos[-1].config),
        labels=infos[-1].labels,
        vocabulary=None if vocabulary is None else vocabulary.sha256,
        source=tuple({path.name: sha256(path) for path in weight_files(folder)} for folder in folders),
        tensors=described,
    )
    texts = {FILE_KEY + name: path.read_text("utf-8") for name in FILES if (path := folders[-1] / name).is_file()}
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        save_file(tensors, draft, metadata={MANIFEST_KEY: pack.model_dump_json(), **texts})
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return pack
