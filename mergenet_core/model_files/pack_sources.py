"""Checks what a knowledge pack is to be made of; only headers and configs are read, and nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergenet_core.errors import ModelRefused, PathRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.model_files.read_model import inspect_model


def inspect_sources(folders: Sequence[Path], out: Path) -> list[ModelInfo]:
    """Inspect a saved model, or a series of its checkpoints, that a pack is to be written from.

    Raises: `ModelRefused` for a model that cannot be read, or checkpoints of different models; `PathRefused` where
    there is no folder to write into.
    """
    if not out.parent.is_dir():
        raise PathRefused(f"{out}: there is no folder {out.parent} to write the pack into; make it, or name another")
    infos = [inspect_model(folder) for folder in folders]
    for folder, found in zip(folders, infos, strict=True):
        if found.shapes != infos[0].shapes or found.vocabulary != infos[0].vocabulary:
            raise ModelRefused(
                f"{folder.name} is no checkpoint of the same model as {folders[0].name}: shapes or vocabulary differ"
            )
    return infos
