"""A model that is ready to train: its examples, its weights under a strategy, and its description for pairing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from mergenet_core.architectures.two_tower_config import image_config, text_config
from mergenet_core.errors import DataRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.model_files.read_model import read_config, read_vocabulary
from mergenet_core.models.describe import count_parameters, model_info
from mergenet_core.models.loading import folder_of, load_target
from mergenet_core.models.processors import processor_folder
from mergenet_core.models.skeleton import fill, load_skeleton
from mergenet_core.spec.data import DataSpec, HeldOut
from mergenet_core.spec.job import JobSpec, ModelSpec, TrainSpec
from mergenet_core.spec.json_values import JsonObject, get_int
from mergenet_core.spec.task_info import TaskName
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.loading import load_task
from mergenet_core.tasks.task import Task
from mergenet_core.training.distributed.world import World
from mergenet_core.training.engines.engine import Engine
from mergenet_core.training.engines.strategies import open_engine, skeleton_context


@dataclass(frozen=True)
class LearnerSpec:
    """The settings of one model that a job trains: its target, or its source."""

    model: ModelSpec
    task: TaskName
    data: DataSpec
    train: TrainSpec
    field: Literal["target", "source"]
    """The field of the job document with these settings; errors begin with it."""
    held_out: HeldOut | None = None
    """A target's, where the source is trained on the same file: the examples that the source leaves out."""


@dataclass(frozen=True)
class Learner:
    """A model under its strategy that has not trained yet, with its task's examples."""

    engine: Engine
    task: Task
    info: ModelInfo
    """The model as pairing reads it."""
    parameters: int
    """Trained numbers of the whole model."""


def target_spec(job: JobSpec) -> LearnerSpec:
    """The job's target."""
    target = job.target
    return LearnerSpec(target.model, target.task, target.data, job.train, "target", held_out=job.held_out)


def source_spec(job: JobSpec) -> LearnerSpec:
    """The source of a job that trains it."""
    assert job.source.data is not None
    assert job.source.train is not None
    return LearnerSpec(job.source.model, job.source_task, job.source.data, job.source.train, "source")


def open_learner(
    spec: LearnerSpec,
    roots: Roots,
    world: World,
    *,
    seed: int,
    shared_processor: Path | None = None,
    start: Callable[[nn.Module, Task], None] | None = None,
) -> Learner:
    """Read the examples, then the model with a head and vocabulary that fit them.

    `shared_processor` has the tokenizer or image processor of a model that has none. Strategies that shard the weights
    build a saved model without its weights first; each process then reads its own entries. `start` writes the weights
    that the training begins with; for that, every process builds the whole model.

    Raises: `ModelRefused`, `DataRefused`, `PathRefused`.
    """
    field, name = spec.field, spec.task
    saved = folder_of(spec.model, roots, f"{field}.model")
    processor = processor_folder(spec.model, name, roots, own=saved, source=shared_processor, field=f"{field}.model")
    channels = image_channels(read_config(saved, name) if saved is not None else spec.model.config or {})
    task = load_task(
        name,
        spec.data,
        processor,
        roots,
        seed=seed,
        field=f"{field}.data",
        channels=channels,
        held_out=spec.held_out,
    )
    context = skeleton_context(spec.train, world) if start is None else None
    if context is not None and saved is not None:
        with context:
            model = load_skeleton(saved, name, task.labels)
    else:
        model = load_target(
            spec.model, name, task.labels, roots, seed=seed, overrides=task.settings, field=f"{field}.model"
        )
    vocabulary = read_vocabulary(processor) if processor is not None else None
    info = model_info(model, vocabulary=vocabulary, labels=task.labels)
    count = count_parameters(model)
    check_fits(info.config, task, spec.data, f"{field}.data")
    if start is not None:
        start(model, task)
    engine = open_engine(model, spec.train, world)
    if context is not None and saved is not None:
        fill(model, engine.shards, saved, task.labels, seed=seed)
    return Learner(engine, task, info, count)


def check_fits(config: JsonObject, task: Task, data: DataSpec, field: str) -> None:
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


def image_channels(config: JsonObject) -> int:
    """The colour channels that a model reads; a text model's config gives the default, which nothing uses."""
    grey = config.get("model_type") in ("mergenet-mlp", "mergenet-cnn")
    return get_int(image_config(config), "num_channels", default=1 if grey else 3)
