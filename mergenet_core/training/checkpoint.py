"""Checkpoints of a trial: published whole, verified before they are read, and read without unpickling objects.

A checkpoint is the same under every strategy and number of processes, so that a trial resumes under any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from mergenet_core.errors import CheckpointInvalid
from mergenet_core.models.saved_tensors import SavedTensors
from mergenet_core.records.job import Checkpoint
from mergenet_core.records.provenance import Provenance
from mergenet_core.storage.published_folder import MANIFEST, sha256, sweep, verify
from mergenet_core.training.distributed.sharded_safetensors import SavedSlice, save_together
from mergenet_core.training.distributed.shared_folder import publishing_together
from mergenet_core.training.engines.engine import Engine
from mergenet_core.training.engines.tensors import held, load, load_moments, moments
from mergenet_core.training.loop import Training
from mergenet_core.training.selection import Selection
from mergenet_core.transfer.shards import FlatSlice

_MODEL, _BEST, _OPTIMIZER, _STATE = "model.safetensors", "best.safetensors", "optimizer.safetensors", "state.pt"


def publish(
    training: Training, selection: Selection, trial_folder: Path, *, attempt: int, keep: int, about: Provenance
) -> Checkpoint:
    """Write the state after `training.step` steps and drop all but the newest `keep`. Raises: `StorageFull`."""
    folder = _parent(trial_folder) / f"step-{training.step:08d}"
    engine = training.engine
    world = engine.world
    with publishing_together(
        world, folder, kind="checkpoint", step=training.step, attempt=attempt, about=about
    ) as draft:
        for prefix, learner in _learners(training):
            tensors = written_here(learner.engine, held(learner.engine))
            save_together(draft / f"{prefix}{_MODEL}", tensors, world)
            tensors = written_here(learner.engine, moments(learner.engine))
            save_together(draft / f"{prefix}{_OPTIMIZER}", tensors, world)
        if selection.weights is not None:
            save_together(draft / _BEST, written_here(engine, selection.weights), world)
        if world.main:
            states = {f"{prefix}training": learner.state_dict() for prefix, learner in _learners(training)}
            torch.save({**states, "selection": selection.state_dict()}, draft / _STATE)
    checkpoint = describe(folder, attempt) if world.main else None
    if world.main:
        for old in _newest_first(trial_folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
    checkpoint = world.from_main(checkpoint)
    assert checkpoint is not None
    return checkpoint


def resume(training: Training, selection: Selection, trial_folder: Path) -> list[str]:
    """Load the newest checkpoint that verifies, if there is one; return why newer ones were refused."""
    engine = training.engine
    chosen, refused = engine.world.from_main(_choose(trial_folder) if engine.world.main else (None, []))
    if chosen is None:
        return refused
    state = torch.load(chosen / _STATE, weights_only=True, map_location="cpu")
    for prefix, learner in _learners(training):
        load(learner.engine, SavedTensors([chosen / f"{prefix}{_MODEL}"]))
        learner.load_state_dict(state[f"{prefix}training"])
        saved = SavedTensors([chosen / f"{prefix}{_OPTIMIZER}"])
        load_moments(learner.engine, saved.names, saved, learner.step)
    best = None
    if (chosen / _BEST).exists():
        read = SavedTensors([chosen / _BEST])
        pieces = held(engine).items()
        best = {name: FlatSlice(piece.start, read(name, piece.start, piece.stop)) for name, piece in pieces}
    selection.load_state_dict(state["selection"], best)
    return refused


def describe(folder: Path, attempt: int) -> Checkpoint:
    """The record of a published checkpoint; its path is relative to the job's folder."""
    path = Path(*folder.parts[-4:]).as_posix()
    step = int(folder.name.removeprefix("step-"))
    return Checkpoint(step=step, path=path, manifest_sha256=sha256(folder / MANIFEST), attempt=attempt)


def written_here(engine: Engine, pieces: Mapping[str, FlatSlice]) -> dict[str, SavedSlice]:
    """The tensors among `pieces` that this process writes, by the name of their parameter, or `moment/parameter`.

    Tensors that every process holds whole are written by the main process alone.
    """
    found = {}
    for name, piece in pieces.items():
        shard = engine.shards[name.rpartition("/")[2]]
        if not shard.is_whole or engine.world.main:
            found[name] = SavedSlice(piece, shard.shape)
    return found


def _learners(training: Training) -> list[tuple[str, Training]]:
    """The models in training, each after the prefix of its files: the target, and a source that learns with it."""
    found = [("", training)]
    return [*found, ("source-", training.joint_source)] if training.joint_source is not None else found


def _choose(trial_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones do not."""
    _parent(trial_folder).mkdir(parents=True, exist_ok=True)
    sweep(_parent(trial_folder))
    refused: list[str] = []
    for folder in _newest_first(trial_folder):
        try:
            verify(folder)
        except CheckpointInvalid as error:
            refused.append(error.message)
        else:
            return folder, refused
    return None, refused


def _parent(trial_folder: Path) -> Path:
    return trial_folder / "checkpoints"


def _newest_first(trial_folder: Path) -> list[Path]:
    return sorted(_parent(trial_folder).glob("step-*"), reverse=True)
