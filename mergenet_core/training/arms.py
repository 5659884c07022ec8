"""From a trial's arm to what it trains. Target, data and batches are the same in every arm of a seed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mergenet_core.architectures.two_tower_config import image_config, text_config
from mergenet_core.errors import DataRefused
from mergenet_core.model_files.knowledge_pack import unpack
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.model_files.read_model import inspect_model, read_config, read_vocabulary
from mergenet_core.models.describe import count_parameters, model_info
from mergenet_core.models.loading import folder_of, load_target
from mergenet_core.models.packs import open_source, open_states, source_rank
from mergenet_core.models.processors import processor_folder
from mergenet_core.models.skeleton import fill, load_skeleton
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.pairing.rank import limit_rank
from mergenet_core.records.job import Trial
from mergenet_core.spec.job import DataSpec, JobSpec, ModelSpec, TaskName, TrainSpec, TransferSpec
from mergenet_core.spec.json_values import get_int
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.tasks.loading import load_task
from mergenet_core.tasks.task import Task
from mergenet_core.training.checkpoint import verify_together
from mergenet_core.training.distributed.engines import Engine, building, open_engine
from mergenet_core.training.distributed.world import World, open_world
from mergenet_core.training.loop import Training
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.shards import LiveWeights

TRANSFERS = ("transfer", "transfer+distill", "sham", "copy")
DISTILLS = ("distill", "transfer+distill")


@dataclass(frozen=True)
class Arm:
    """What a trial trains, and the transfer that comes with it."""

    training: Training
    task: Task
    parameters: int
    transfer: Transfer | None = None
    pairing: Pairing | None = None


@dataclass(frozen=True)
class Learner:
    """A model that has not learned yet, with its task's examples."""

    task: Task
    model: nn.Module
    vocabulary: Vocabulary | None
    weights: Path | None = None
    """The folder that fills a model which is shapes alone."""

    def engine(self, spec: TrainSpec, world: World, seed: int) -> Engine:
        """The model under its strategy, its weights in place. Raises: `ModelRefused`."""
        engine = open_engine(self.model, spec, world)
        if self.weights is not None:
            fill(self.model, engine.shards, self.weights, self.task.labels, seed=seed)
        return engine


def prepare_source(job: JobSpec, roots: Roots) -> Arm:
    """The source in training on its own data. Raises: `ModelRefused`, `DataRefused`, `PathRefused`."""
    assert job.source.train is not None
    world = open_world(job.resources, job.source.train.precision)
    return _learning_source(job, world, roots, job.source.seed)[0]


def _learning_source(job: JobSpec, world: World, roots: Roots, seed: int) -> tuple[Arm, ModelInfo]:
    data, spec = job.source.data, job.source.train
    assert data is not None
    assert spec is not None
    learner = prepare_learner(
        job.source.model, job.source_task, data, None, roots, building(spec, world), seed=seed, field="source"
    )
    count = count_parameters(learner.model)
    known = model_info(learner.model, vocabulary=learner.vocabulary, labels=learner.task.labels)
    engine = learner.engine(spec, world, seed)
    return Arm(Training(engine, learner.task, seed=seed, field="source.train"), learner.task, count), known


def prepare_arm(job: JobSpec, trial: Trial, folder: JobFolder, roots: Roots) -> Arm:
    """The target in training, with the arm's transfer.

    Raises: `ModelRefused`, `DataRefused`, `PairingRefused`, `PathRefused`, `CheckpointInvalid`.
    """
    world = open_world(job.resources, job.train.precision)
    heir = _shared_processor(job, folder, roots)
    seed = trial.seed
    parts = building(job.train, world)
    learner = prepare_learner(
        job.target.model, job.target.task, job.target.data, heir, roots, parts, seed=seed, field="target"
    )
    count = count_parameters(learner.model)
    target = model_info(learner.model, vocabulary=learner.vocabulary, labels=learner.task.labels)
    engine = learner.engine(job.train, world, seed)
    training = Training(engine, learner.task, seed=seed)
    if job.source.mode == "joint":
        return _beside(job, trial, roots, training, target, count)
    if trial.arm not in TRANSFERS:
        return Arm(training, learner.task, count)
    if job.source.mode == "self":
        pairing = pair(target, target, job.transfer)
        transfer = _between(training, training, pairing, job.transfer, trial)
    else:
        source = frozen_source(job, folder, roots, world)
        pairing = pair(source_facts(job, source, roots), target, job.transfer)
        pairing = limit_rank(pairing, source_rank(job.source, source), job.transfer.rank)
        kept = [folder.source_state(step) for step in job.source.kept_steps]
        for state in kept:
            verify_together(world, state)
        states = open_states(job.source, source, kept, world.device) if trial.arm != "copy" else ()
        shuffle_seed = seed if trial.arm == "sham" else None
        weights = states[0] if states else open_source(job.source, source, world.device)
        transfer = Transfer(
            TransferSource(weights, states=states, shuffle_seed=shuffle_seed),
            engine.named(),
            pairing,
            job.transfer,
            steps=job.train.steps,
            seed=seed,
            method="copy" if trial.arm == "copy" else None,
        )
    training.transfer = transfer
    return Arm(training, learner.task, count, transfer, pairing)


def _beside(job: JobSpec, trial: Trial, roots: Roots, training: Training, target: ModelInfo, count: int) -> Arm:
    """An arm whose source learns beside the target; a control has one only where the source is to gain as well."""
    transfers, two_way = trial.arm in TRANSFERS, job.transfer.back_cycle is not None
    if not transfers and not two_way:
        return Arm(training, training.task, count)
    world = replace(training.engine.world, precision=job.source.train.precision if job.source.train else "fp32")
    partner, source = _learning_source(job, world, roots, trial.seed)
    training.partner, transfer, pairing = partner.training, None, None
    if transfers:
        pairing = pair(source, target, job.transfer)
        training.transfer = transfer = _between(partner.training, training, pairing, job.transfer, trial)
    if transfers and job.transfer.back_cycle is not None:
        back = job.transfer.model_copy(update={"cycle": job.transfer.back_cycle})
        partner.training.transfer = _between(training, partner.training, pair(target, source, back), back, trial)
    return Arm(training, training.task, count, transfer, pairing)


def _between(giver: Training, taker: Training, pairing: Pairing, spec: TransferSpec, trial: Trial) -> Transfer:
    live = giver.engine.named()
    source = TransferSource(LiveWeights(live), live, shuffle_seed=trial.seed if trial.arm == "sham" else None)
    return Transfer(source, taker.engine.named(), pairing, spec, steps=taker.spec.steps, seed=trial.seed)


def source_folder(job: JobSpec, folder: JobFolder, roots: Roots) -> Path | None:
    """Where the source's weights are: trained by the job, or given; None for one that begins from a config, beside."""
    return folder.source if job.source.trained_first else folder_of(job.source.model, roots, "source.model")


def frozen_source(job: JobSpec, folder: JobFolder, roots: Roots, world: World) -> Path:
    """The folder of a frozen source's weights, verified where the job trained it. Raises: `CheckpointInvalid`."""
    found = source_folder(job, folder, roots)
    assert found is not None, "the spec refuses a frozen source from a config that is never trained"
    if job.source.trained_first:
        verify_together(world, found)
    return found


def source_facts(job: JobSpec, source: Path, roots: Roots) -> ModelInfo:
    """The source as pairing reads it. Raises: `ModelRefused`."""
    found = inspect_model(source)
    if job.source.model.tokenizer is None:
        return found
    tokenizer = roots.model(job.source.model.tokenizer, "source.model.tokenizer")
    return replace(found, vocabulary=read_vocabulary(tokenizer))


def prepare_learner(
    spec: ModelSpec,
    name: TaskName,
    data: DataSpec,
    heir_of: Path | None,
    roots: Roots,
    parts: AbstractContextManager[Any] | None,
    *,
    seed: int,
    field: str,
) -> Learner:
    """The examples, then the model whose head and vocabulary fit them; `heir_of` has the tokenizer it may take over.

    A saved model is built as shapes alone in the context `parts`, where there is one.

    Raises: `ModelRefused`, `DataRefused`, `PathRefused`.
    """
    own = folder_of(spec, roots, f"{field}.model")
    processor = processor_folder(spec, name, roots, own=own, source=heir_of, field=f"{field}.model")
    channels = image_channels(read_config(own, name) if own is not None else spec.config or {})
    task = load_task(name, data, processor, roots, seed=seed, field=f"{field}.data", channels=channels)
    weights = own if parts is not None else None
    if parts is not None and own is not None:
        with parts:
            model = load_skeleton(own, name, task.labels)
    else:
        model = load_target(spec, name, task.labels, roots, seed=seed, overrides=task.settings, field=f"{field}.model")
    check_fits(model.config.to_dict(), task, data, f"{field}.data")  # type: ignore[operator, union-attr]
    return Learner(task, model, read_vocabulary(processor) if processor is not None else None, weights)


def check_fits(config: Mapping[str, Any], task: Task, data: DataSpec, field: str) -> None:
    """Refuse examples that the model cannot read. Raises: `DataRefused`."""
    text, images = text_config(config), image_config(config)
    tokens, rows = task.settings.get("vocab_size"), text.get("vocab_size")
    if tokens is not None and isinstance(rows, int) and rows < tokens:
        raise DataRefused(f"{field}: the tokenizer has {tokens} tokens, the model {rows}; leave vocab_size out")
    positions = text.get("max_position_embeddings")
    if tokens is not None and isinstance(positions, int) and 0 < positions < data.max_length:
        raise DataRefused(f"{field}.max_length is {data.max_length}, the model reads {positions} tokens; lower it")
    size = images.get("image_size")
    if "image_size" in task.settings and isinstance(size, int) and size != data.image_size:
        raise DataRefused(f"{field}.image_size is {data.image_size}, the model's is {size}; make them the same")


def _shared_processor(job: JobSpec, folder: JobFolder, roots: Roots) -> Path | None:
    # never the folder of a source that the job trains itself: the control does not wait for it, and has to see the
    # same inputs as the other arms
    if job.source.model.tokenizer is not None:
        return roots.model(job.source.model.tokenizer, "source.model.tokenizer")
    found = folder_of(job.source.model, roots, "source.model")
    if found is not None and job.source.model.pack is not None:
        unpack(found, folder.processor)
        return folder.processor
    return found


def image_channels(config: Mapping[str, Any]) -> int:
    """How many channels a model's config asks for; of no meaning for text."""
    plain = config.get("model_type") in ("mergenet-mlp", "mergenet-cnn")
    return get_int(image_config(config), "num_channels", default=1 if plain else 3)
