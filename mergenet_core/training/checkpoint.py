"""Checkpoints of a trial: published whole, verified before they are read, and read without unpickling objects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergenet_core.errors import CheckpointInvalid
from mergenet_core.jobs.artifacts import MANIFEST, publishing, sha256, sweep, verify
from mergenet_core.jobs.records import Checkpoint
from mergenet_core.training.loop import Training
from mergenet_core.training.selection import Selection

_MODEL, _BEST, _STATE = "model.safetensors", "best.safetensors", "state.pt"


def publish(
    training: Training, selection: Selection, trial_folder: Path, *, attempt: int, keep: int, about: dict[str, Any]
) -> Checkpoint:
    """Write the state after `training.step` steps and drop all but the newest `keep`. Raises: `StorageFull`."""
    folder = _parent(trial_folder) / f"step-{training.step:08d}"
    with publishing(folder, kind="checkpoint", step=training.step, attempt=attempt, about=about) as draft:
        save_file(on_cpu(training.model.state_dict()), draft / _MODEL)
        if selection.weights is not None:
            save_file(selection.weights, draft / _BEST)
        torch.save({"training": training.state_dict(), "selection": selection.state_dict()}, draft / _STATE)
    checkpoint = describe(folder, attempt)
    for old in _newest_first(trial_folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return checkpoint


def resume(training: Training, selection: Selection, trial_folder: Path) -> list[str]:
    """Load the newest checkpoint that verifies, if there is one; return why newer ones were passed over."""
    _parent(trial_folder).mkdir(parents=True, exist_ok=True)
    sweep(_parent(trial_folder))
    refused = []
    for folder in _newest_first(trial_folder):
        try:
            verify(folder)
        except CheckpointInvalid as error:
            refused.append(error.message)
            continue
        training.model.load_state_dict(load_file(folder / _MODEL))
        state = torch.load(folder / _STATE, weights_only=True, map_location="cpu")
        training.load_state_dict(state["training"])
        best = folder / _BEST
        selection.load_state_dict(state["selection"], load_file(best) if best.exists() else None)
        break
    return refused


def describe(folder: Path, attempt: int) -> Checkpoint:
    """The record of a published checkpoint; its path is told from the job's folder."""
    path = Path(*folder.parts[-4:]).as_posix()
    step = int(folder.name.removeprefix("step-"))
    return Checkpoint(step=step, path=path, manifest_sha256=sha256(folder / MANIFEST), attempt=attempt)


def on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy that no later step changes, each tensor with storage of its own."""
    return {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()}


def _parent(trial_folder: Path) -> Path:
    return trial_folder / "checkpoints"


def _newest_first(trial_folder: Path) -> list[Path]:
    return sorted(_parent(trial_folder).glob("step-*"), reverse=True)
