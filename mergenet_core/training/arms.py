"""From a trial's arm to what it trains: the target and its data are the same in every arm of a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mergenet_core.errors import DataRefused
from mergenet_core.jobs.inspect import read_config, vocabulary_hash
from mergenet_core.jobs.paths import JobFolder, Roots
from mergenet_core.jobs.records import Trial
from mergenet_core.jobs.spec import DataSpec, JobSpec, ModelSpec, TaskName
from mergenet_core.models.loading import folder_of, load_target
from mergenet_core.models.processors import processor_folder
from mergenet_core.tasks.loading import load_task
from mergenet_core.tasks.task import Task
from mergenet_core.training.loop import Training
from mergenet_core.training.strategy import open_accelerator


@dataclass
class Arm:
    """What a trial trains, and what comes with it."""

    training: Training
    task: Task
    adapter_parameters: int = 0
    transferred_parameters: int = 0

    def prepare_teacher(self, stop_if_asked: Callable[[], bool]) -> None:
        pass

    def teacher_metrics(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Learner:
    """A model with its task's examples, before it is trained."""

    task: Task
    model: nn.Module
    vocabulary: str | None


def source_folder(job: JobSpec, folder: JobFolder, roots: Roots) -> Path:
    """Where the source's weights are: trained by the job, or given."""
    if job.source.train is not None:
        return folder.source
    found = folder_of(job.source.model, roots, "source.model")
    assert found is not None, "the spec refuses a source from a config that is never trained"
    return found


def prepare_source(job: JobSpec, trial: Trial, folder: JobFolder, roots: Roots) -> Arm:
    """The source in training on its own data."""
    data, spec = job.source.data, job.source.train
    assert data is not None
    assert spec is not None
    accelerator = open_accelerator(job.resources.device, spec.precision)
    seed = job.source.seed
    learner = prepare_learner(job.source.model, job.target.task, data, None, roots, seed=seed, field="source")
    model = learner.model.to(accelerator.device)
    return Arm(Training(model, learner.task, spec, accelerator, seed=seed), learner.task)


def prepare_arm(job: JobSpec, trial: Trial, folder: JobFolder, roots: Roots) -> Arm:
    """The target in training, with what the arm adds to it."""
    accelerator = open_accelerator(job.resources.device, job.train.precision)
    source = source_folder(job, folder, roots)
    learner = prepare_learner(
        job.target.model, job.target.task, job.target.data, source, roots, seed=trial.seed, field="target"
    )
    model = learner.model.to(accelerator.device)
    return Arm(Training(model, learner.task, job.train, accelerator, seed=trial.seed), learner.task)


def prepare_learner(
    spec: ModelSpec, name: TaskName, data: DataSpec, source: Path | None, roots: Roots, *, seed: int, field: str
) -> Learner:
    """The examples, then the model whose head and vocabulary fit them."""
    own = folder_of(spec, roots, f"{field}.model")
    config = read_config(own, name) if own is not None else dict(spec.config or {})
    processor = processor_folder(spec, name, roots, own=own, source=source, field=f"{field}.model")
    channels = int(config.get("num_channels", 3 if not str(config["model_type"]).startswith("mergenet") else 1))
    task = load_task(name, data, processor, roots, seed=seed, field=f"{field}.data", channels=channels)
    model = load_target(spec, name, task.labels, roots, seed=seed, overrides=task.settings, field=f"{field}.model")
    check_fits(model.config.to_dict(), task, data, f"{field}.data")
    return Learner(task, model, vocabulary_hash(processor) if processor is not None else None)


def check_fits(config: dict[str, object], task: Task, data: DataSpec, field: str) -> None:
    """Refuse examples that the model cannot read. Raises: `DataRefused`."""
    vocabulary = task.settings.get("vocab_size")
    rows = config.get("vocab_size")
    if isinstance(vocabulary, int) and isinstance(rows, int) and rows < vocabulary:
        raise DataRefused(f"{field}: the tokenizer has {vocabulary} tokens, the model only {rows}; omit vocab_size")
    positions = config.get("max_position_embeddings")
    if isinstance(vocabulary, int) and isinstance(positions, int) and 0 < positions < data.max_length:
        raise DataRefused(
            f"{field}.max_length: {data.max_length}, the model reads {positions} tokens at most; lower it"
        )
    size = config.get("image_size")
    if "image_size" in task.settings and isinstance(size, int) and size != data.image_size:
        raise DataRefused(f"{field}.image_size: {data.image_size}, the model wants {size}; set image_size to {size}")
