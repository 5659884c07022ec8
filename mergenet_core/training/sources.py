"""What a transfer reads of its source: a model in a folder or pack, the states of a trajectory, a model in training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.knowledge_pack import read_pack, unpack
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.model_files.read_model import inspect_model, read_config, read_vocabulary, weight_files
from mergenet_core.models.factored_source import at_rank, open_source, open_states, source_rank
from mergenet_core.models.loading import folder_of, load_trained
from mergenet_core.models.processors import processor_folder
from mergenet_core.models.untrained_source import untrained_weights
from mergenet_core.records.job import Trial
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.tasks.loading import load_task
from mergenet_core.tasks.task import Task
from mergenet_core.training.context import TrialContext
from mergenet_core.training.distributed.shared_folder import verify_together
from mergenet_core.training.engines.engine import named_shards
from mergenet_core.training.learners import Learner, check_fits, image_channels
from mergenet_core.transfer.cycle import TransferSource
from mergenet_core.transfer.sham import Sham
from mergenet_core.transfer.shards import LiveWeights

PROBED_BYTES = 2**31
"""The largest source, by the size of its weights' files, that is loaded as a whole for a linear probe."""


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
    return Source(learner.info, TransferSource(LiveWeights(live), live, sham=sham_of(trial)))


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
        TransferSource(weights, states=states, sham=sham_of(trial)),
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


def sham_of(trial: Trial) -> Sham | None:
    """How an arm's source loses its knowledge; None where it keeps it, or has none."""
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


def open_source_task(context: TrialContext, source: Path) -> Task:
    """The trial's examples in the same order, read with the source's tokenizer or at its image size."""
    job, roots = context.job, context.roots
    name, field = job.target.task, "target.data"
    config = read_config(source, name)
    processor = processor_folder(job.source.model, name, roots, own=source, source=None, field="source.model")
    size = _image_size(config, processor) or job.target.data.image_size
    data = job.target.data.model_copy(update={"image_size": size})
    channels = image_channels(config)
    task = load_task(
        name, data, processor, roots, seed=context.trial.seed, field=field, channels=channels, held_out=job.held_out
    )
    check_fits(config, task, data, field)
    return task


def may_probe(job: JobSpec) -> bool:
    """Whether the source is a whole frozen model, and the target's examples have one label each."""
    frozen = job.source.mode in ("frozen", "trajectory") and job.source.model.pack is None
    return frozen and TASKS[job.target.task].one_label


def source_to_probe(context: TrialContext, labels: tuple[str, ...]) -> tuple[nn.Module, Task]:
    """The source as it is, and the trial's examples as it reads them.

    Raises: `ModelRefused`, `DataRefused` if it reads other inputs, or is too large to be loaded besides the target.
    """
    source = source_path(context.job, context.folder, context.roots)
    assert source is not None, "the spec refuses a frozen source from a config that is never trained"
    size = sum(file.stat().st_size for file in weight_files(source))
    if size > PROBED_BYTES:
        raise ModelRefused(f"the source's weights take {size / 1e9:.1f} GB, the limit is {PROBED_BYTES / 1e9:.1f} GB")
    task = open_source_task(context, source)
    return load_trained(source, context.job.target.task, labels, seed=context.trial.seed), task


def _image_size(config: JsonObject, processor: Path | None) -> int | None:
    size = config.get("image_size")
    if isinstance(size, int):
        return size
    described = processor / "preprocessor_config.json" if processor is not None else None
    if described is None or not described.is_file():
        return None
    given = json.loads(described.read_text()).get("size")
    return int(given["height"]) if isinstance(given, dict) and "height" in given else None
