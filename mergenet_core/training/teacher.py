"""The teacher of a distillation: the source as it is, or a copy of it fine-tuned on the trial's own examples."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mergenet_core.errors import CheckpointInvalid, ModelRefused
from mergenet_core.model_files.read_model import read_config
from mergenet_core.models.loading import load_trained
from mergenet_core.models.processors import processor_folder
from mergenet_core.records.job import Trial
from mergenet_core.records.provenance import Provenance
from mergenet_core.spec.job import DistillSpec, JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.storage.published_folder import verify
from mergenet_core.tasks.loading import load_task
from mergenet_core.tasks.task import Task
from mergenet_core.training.arms import check_fits, frozen_source, image_channels, source_facts
from mergenet_core.training.distill import Distillation, Relabelled
from mergenet_core.training.distributed.engines import open_engine
from mergenet_core.training.distributed.world import World
from mergenet_core.training.export import export_model
from mergenet_core.training.loop import Training, evaluate, over


@dataclass(frozen=True)
class Teacher:
    """What distils, what it cost to get it, and how good it is itself."""

    distillation: Distillation
    seconds: float
    test: float


def prepare_teacher(
    job: JobSpec,
    trial: Trial,
    folder: JobFolder,
    roots: Roots,
    labels: tuple[str, ...],
    world: World,
    *,
    attempt: int,
    stop_if_asked: Callable[[], bool],
) -> Teacher:
    """The arm's teacher; one that was fine-tuned at this seed is used again, an interrupted fine-tuning starts anew.

    Raises: `ModelRefused` where the source has no head for the target's labels and is not to be given one.
    """
    spec = job.transfer.distill or DistillSpec()
    source = frozen_source(job, folder, roots, world)
    task = _as_the_source_reads(job, trial, source, roots)
    seconds, known = 0.0, labels
    if spec.teacher is None:
        known = _known_labels(labels, source_facts(job, source, roots).labels)
        model = load_trained(source, job.target.task, known, seed=trial.seed)
    else:
        saved = folder.teachers / str(trial.seed)
        if not world.told(_verifies(saved)):
            begun = time.perf_counter()
            learner = load_trained(source, job.target.task, labels, seed=trial.seed)
            engine = open_engine(learner, spec.teacher, replace(world, precision=spec.teacher.precision))
            training = Training(engine, task, seed=trial.seed, field="transfer.distill.teacher")
            while training.step < spec.teacher.steps:
                stop_if_asked()
                training.advance()
            about: Provenance = {"step": training.step, "seconds": time.perf_counter() - begun}
            export_model(engine, task.processor, saved, attempt=attempt, about=about)
        seconds = float(verify(saved).about["seconds"])
        model = load_trained(saved, job.target.task, labels, seed=trial.seed)
    frozen = Relabelled(model, [known.index(label) for label in labels]).to(world.device).eval()

    def say(**inputs: Tensor) -> Any:
        with world.accelerator.autocast():
            return frozen(**inputs)

    test = evaluate(say, task, task.test, world, job.train.batch_size)[task.metric]
    begun = time.perf_counter()
    logits_nl = over(say, task, task.train, world, job.train.batch_size, lambda outputs, _: outputs["logits"])
    seconds += time.perf_counter() - begun
    return Teacher(Distillation(logits_nl, spec), seconds, test)


def _known_labels(labels: tuple[str, ...], known: tuple[str, ...] | None) -> tuple[str, ...]:
    if known is not None and sorted(known) == sorted(labels):
        return known
    theirs = f"the labels {_listed(known)}" if known else "no trained head"
    raise ModelRefused(
        f"the source has {theirs}, the target's labels are {_listed(labels)}: it cannot teach them as it is. Give "
        "transfer.distill.teacher (steps, learning_rate, …) to fine-tune a copy first, or leave the distill arms out"
    )


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")


def _as_the_source_reads(job: JobSpec, trial: Trial, source: Path, roots: Roots) -> Task:
    """The trial's own examples, in the same order, through the source's tokenizer or at its image size."""
    name, field = job.target.task, "target.data"
    config = read_config(source, name)
    processor = processor_folder(job.source.model, name, roots, own=source, source=None, field="source.model")
    size = _image_size(config, processor) or job.target.data.image_size
    data = job.target.data.model_copy(update={"image_size": size})
    channels = image_channels(config)
    task = load_task(name, data, processor, roots, seed=trial.seed, field=field, channels=channels)
    check_fits(config, task, data, field)
    return task


def _image_size(config: Mapping[str, Any], processor: Path | None) -> int | None:
    if isinstance(config.get("image_size"), int):
        return int(config["image_size"])
    described = processor / "preprocessor_config.json" if processor is not None else None
    if described is None or not described.is_file():
        return None
    size = json.loads(described.read_text()).get("size")
    return int(size["height"]) if isinstance(size, dict) and "height" in size else None


def _verifies(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointInvalid:
        return False
    return True
