"""Checkpoints of a trial: published whole, verified before they are read, and read without unpickling objects.

A checkpoint is the same under every strategy and number of processes, so a trial resumes under any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mergenet_core.errors import CheckpointInvalid
from mergenet_core.models.saved import SavedTensors
from mergenet_core.records.job import Checkpoint
from mergenet_core.records.provenance import Provenance
from mergenet_core.storage.published_folder import MANIFEST, publishing, sha256, sweep, verify
from mergenet_core.training.distributed.engines import Engine
from mergenet_core.training.distributed.sharded_safetensors import Part, save_together
from mergenet_core.training.distributed.world import World
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
            save_together(draft / f"{prefix}{_MODEL}", parts(learner.engine, learner.engine.held()), world)
            save_together(draft / f"{prefix}{_OPTIMIZER}", parts(learner.engine, learner.engine.moments()), world)
        if selection.weights is not None:
            save_together(draft / _BEST, parts(engine, selection.weights), world)
        if world.main:
            states = {f"{prefix}training": learner.state_dict() for prefix, learner in _learners(training)}
            torch.save({**states, "selection": selection.state_dict()}, draft / _STATE)
    checkpoint = describe(folder, attempt) if world.main else None
    if world.main:
        for old in _newest_first(trial_folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
    told: Checkpoint = world.told(checkpoint)
    return told


def resume(training: Training, selection: Selection, trial_folder: Path) -> list[str]:
    """Load the newest checkpoint that verifies, if there is one; return why newer ones were passed over."""
    engine = training.engine
    chosen, refused = engine.world.told(_choose(trial_folder) if engine.world.main else None)
    if chosen is None:
        return list(refused)
    state = torch.load(chosen / _STATE, weights_only=True, map_location="cpu")
    for prefix, learner in _learners(training):
        learner.engine.load(SavedTensors([chosen / f"{prefix}{_MODEL}"]))
        learner.load_state_dict(state[f"{prefix}training"])
        moments = SavedTensors([chosen / f"{prefix}{_OPTIMIZER}"])
        learner.engine.load_moments(moments.names, moments, learner.step)
    best = None
    if (chosen / _BEST).exists():
        read = SavedTensors([chosen / _BEST])
        held = engine.held().items()
        best = {name: FlatSlice(piece.start, read(name, piece.start, piece.stop)) for name, piece in held}
    selection.load_state_dict(state["selection"], best)
    return list(refused)


def describe(folder: Path, attempt: int) -> Checkpoint:
    """The record of a published checkpoint; its path is told from the job's folder."""
    path = Path(*folder.parts[-4:]).as_posix()
    step = int(folder.name.removeprefix("step-"))
    return Checkpoint(step=step, path=path, manifest_sha256=sha256(folder / MANIFEST), attempt=attempt)


@contextmanager
def publishing_together(world: World, folder: Path, **settings: Any) -> Iterator[Path]:
    """`publishing` for all processes: they write into one draft, which the first of them publishes."""
    if not world.main:
        yield world.told(None)
        world.wait()
        return
    with publishing(folder, **settings) as draft:
        yield world.told(draft)
    world.wait()


def verify_together(world: World, folder: Path) -> None:
    """`verify` for all processes: the main one reads the files, and every process raises where one is damaged."""
    fault = None
    if world.main:
        try:
            verify(folder)
        except CheckpointInvalid as error:
            fault = error.message
    fault = world.told(fault)
    if fault is not None:
        raise CheckpointInvalid(fault)


def parts(engine: Engine, pieces: Mapping[str, FlatSlice]) -> dict[str, Part]:
    """What this process writes of some tensors, named after their parameter (`moment/parameter` too)."""
    found = {}
    for name, piece in pieces.items():
        shard = engine.shards[name.rpartition("/")[2]]
        if not shard.is_whole or engine.world.main:
            found[name] = Part(piece, shard.shape)
    return found


def _learners(training: Training) -> list[tuple[str, Training]]:
    """What learns in a trial, with what its files' names begin with: the target, and a source beside it."""
    found = [("", training)]
    return [*found, ("source-", training.partner)] if training.partner is not None else found


def _choose(trial_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones do not."""
    _parent(trial_folder).mkdir(parents=True, exist_ok=True)
    sweep(_parent(trial_folder))
    refused = []
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
