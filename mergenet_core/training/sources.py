"""What a transfer reads of its source: a model in a folder or pack, the states of a trajectory, a model in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mergenet_core.model_files.knowledge_pack import read_pack, unpack
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.model_files.read_model import inspect_model, read_vocabulary
from mergenet_core.models.factored_source import at_rank, open_source, open_states, source_rank
from mergenet_core.models.loading import folder_of
from mergenet_core.models.untrained_source import untrained_weights
from mergenet_core.records.job import Trial
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.context import TrialContext
from mergenet_core.training.distributed.shared_folder import verify_together
from mergenet_core.training.engines.engine import named_shards
from mergenet_core.training.learners import Learner
from mergenet_core.transfer.cycle import TransferSource
from mergenet_core.transfer.sham import Sham
from mergenet_core.transfer.shards import LiveWeights


@dataclass(frozen=True)
class Source:
    """A source as pairing and transfer read it."""

    info: ModelInfo
    weights: TransferSource
    rank: int | None = None
    """The rank at which the weights are stored; None if they are stored whole."""


def training_source(learner: Learner, trial: Trial) -> Source:
    """A source that is in training: a model that learns together with the target, or the target itself."""
    live = named_shards(learner.engine)
    return Source(learner.info, TransferSource(LiveWeights(live), live, sham=_sham(trial)))


def frozen_source(context: TrialContext) -> Source:
    """A source that does not change, with the states of its trajectory if the job transfers along it.

    Raises: `ModelRefused`, `PathRefused`, `CheckpointInvalid`.
    """
    spec, device, trial = context.job.source, context.world.device, context.trial
    path = frozen_source_path(context)
    info = frozen_source_info(context.job, path, context.roots)
    if trial.arm == "sham-untrained":
        return _untrained_source(context, path, info)
    kept = [context.folder.source_state(step) for step in spec.kept_steps]
    for state in kept:
        verify_together(context.world, state)
    # the arm `copy` takes over the source as it is in the end
    states = open_states(spec, path, kept, device) if trial.arm != "copy" else ()
    weights = states[0] if states else open_source(spec, path, device)
    return Source(
        info,
        TransferSource(weights, states=states, sham=_sham(trial)),
        rank=source_rank(spec, path),
    )


def _untrained_source(context: TrialContext, path: Path, info: ModelInfo) -> Source:
    """The source's architecture as its config initialises it, at the source's rank. Raises: `ModelRefused`."""
    spec, device = context.job.source, context.world.device
    weights: Mapping[str, Tensor] = untrained_weights(info, context.job.source_task, context.trial.seed, device)
    rank = source_rank(spec, path)
    if rank is not None:
        dtype = read_pack(path).dtype if spec.model.pack is not None else spec.dtype
        weights = at_rank(weights, rank, dtype, device)
    return Source(info, TransferSource(weights), rank=rank)


def _sham(trial: Trial) -> Sham | None:
    if trial.arm == "sham":
        return Sham("shuffled", trial.seed)
    return Sham("spectrum", trial.seed) if trial.arm == "sham-spectrum" else None


def frozen_source_path(context: TrialContext) -> Path:
    """The folder or pack with a frozen source's weights, verified if the job trained it.

    Raises: `CheckpointInvalid`.
    """
    found = source_path(context.job, context.folder, context.roots)
    assert found is not None, "the spec refuses a frozen source from a config that is never trained"
    if context.job.source.trained_first:
        verify_together(context.world, found)
    return found


def source_path(job: JobSpec, folder: JobFolder, roots: Roots) -> Path | None:
    """The folder or pack with the source's weights, trained by the job or given.

    None for a source that begins from a config and learns together with the target. Raises: `PathRefused`.
    """
    return folder.source if job.source.trained_first else folder_of(job.source.model, roots, "source.model")


def frozen_source_info(job: JobSpec, path: Path, roots: Roots) -> ModelInfo:
    """The source as pairing reads it. Raises: `ModelRefused`."""
    found = inspect_model(path)
    if job.source.model.tokenizer is None:
        return found
    tokenizer = roots.model(job.source.model.tokenizer, "source.model.tokenizer")
    return replace(found, vocabulary=read_vocabulary(tokenizer))


def shared_processor(context: TrialContext) -> Path | None:
    """The folder of the source's tokenizer or image processor, which a target without one takes over.

    Never the folder of a source that the job trains: the control does not wait for that training, and has to see the
    same inputs as the other arms.
    """
    spec, roots = context.job.source.model, context.roots
    if spec.tokenizer is not None:
        return roots.model(spec.tokenizer, "source.model.tokenizer")
    found = folder_of(spec, roots, "source.model")
    if found is not None and spec.pack is not None:
        unpack(found, context.folder.processor)
        return context.folder.processor
    return found
