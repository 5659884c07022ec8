"""The teacher of a distillation: the source as it is, or a copy of it fine-tuned on the trial's own examples."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from mergenet_core.errors import ModelRefused
from mergenet_core.models.describe import count_parameters, model_info
from mergenet_core.models.loading import load_trained, names_not_in_files
from mergenet_core.records.provenance import Provenance
from mergenet_core.spec.job import DISTILL_SHAM, DistillSpec, TaskName, TrainSpec
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.published_folder import read_manifest, verifies
from mergenet_core.tasks.task import Outputs, Task
from mergenet_core.training.context import TrialContext
from mergenet_core.training.distillation.distill import Distillation, Relabelled
from mergenet_core.training.distillation.teacher_outputs import check_same_tokens, open_outputs
from mergenet_core.training.engines.strategies import open_engine
from mergenet_core.training.export import export_model
from mergenet_core.training.learners import Learner
from mergenet_core.training.loop import Training, evaluate
from mergenet_core.training.sources import frozen_source_info, frozen_source_path, open_source_task
from mergenet_core.transfer.sham import Sham, ShamWeights


@dataclass(frozen=True)
class Teacher:
    """A prepared teacher."""

    distillation: Distillation
    seconds: float
    """What it took to prepare it."""
    test: float
    """Its own metric on the test split."""


def prepare_teacher(
    context: TrialContext, target: Task, *, attempt: int, stop_if_requested: Callable[[], bool]
) -> Teacher:
    """The teacher of an arm that distils, for a target with this task. One fine-tuned at this seed is reused.

    Fine-tuning that was interrupted starts again from its first step.

    Raises: `ModelRefused` if the source has no head for the target's task and is not to be fine-tuned; `DataRefused` if
    it reads other tokens than the target where outputs belong to tokens.
    """
    job, seed, world = context.job, context.trial.seed, context.world
    spec = job.transfer.distill or DistillSpec()
    source = frozen_source_path(context)
    task = open_source_task(context, source)
    check_same_tokens(job, task, target)
    labels = target.labels
    seconds, known = 0.0, labels
    if spec.teacher is None:
        if TASKS[job.target.task].fixed_labels is None:
            known = _known_labels(labels, frozen_source_info(job, source, context.roots).labels)
        model = _source_model(context, source, known)
        _refuse_new_weights(model, source, job.target.task)
    else:
        saved = context.folder.teachers / (f"{seed}-sham" if context.trial.arm == DISTILL_SHAM else str(seed))
        if not world.from_main(world.main and verifies(saved)):
            begun = time.perf_counter()
            training = _fine_tuning(context, source, task, spec.teacher)
            while training.step < spec.teacher.steps:
                stop_if_requested()
                training.advance()
            about: Provenance = {"step": training.step, "seconds": time.perf_counter() - begun}
            export_model(training.engine, task.processor, saved, attempt=attempt, about=about)
        seconds = read_manifest(saved).about["seconds"]  # verified above, or written just now
        model = load_trained(saved, job.target.task, labels, seed=seed)
    if known != labels:
        model = Relabelled(model, [known.index(label) for label in labels])
    frozen = model.to(world.device).eval().requires_grad_(False)

    def predict(**inputs: Tensor) -> Outputs:
        with world.accelerator.autocast():
            outputs: Outputs = frozen(**inputs)
        return outputs

    test = evaluate(predict, task, task.test, world, job.train.batch_size)[task.metric]
    begun = time.perf_counter()
    read = open_outputs(predict, task, job, world)
    seconds += time.perf_counter() - begun
    pool_batch_size = None if task.unlabelled is None else job.pool_batch_size
    return Teacher(Distillation(spec, read, pool_batch_size), seconds, test)


def _fine_tuning(context: TrialContext, source: Path, task: Task, spec: TrainSpec) -> Training:
    """The source with a head for the target's labels, in training on the trial's examples."""
    seed = context.trial.seed
    model = _source_model(context, source, task.labels)
    info, count = model_info(model, labels=task.labels), count_parameters(model)
    engine = open_engine(model, spec, replace(context.world, precision=spec.precision))
    return Training(Learner(engine, task, info, count), seed=seed, field="transfer.distill.teacher")


def _source_model(context: TrialContext, source: Path, labels: tuple[str, ...]) -> nn.Module:
    """The source with a head for the labels; in the arm `distill-sham` each of its weights is shuffled."""
    seed = context.trial.seed
    model = load_trained(source, context.job.target.task, labels, seed=seed)
    if context.trial.arm == DISTILL_SHAM:
        model.load_state_dict(ShamWeights(model.state_dict(), Sham("shuffled", seed)))
    return model


def _known_labels(labels: tuple[str, ...], known: tuple[str, ...] | None) -> tuple[str, ...]:
    if known is not None and sorted(known) == sorted(labels):
        return known
    given = f"the labels {_listed(known)}" if known else "no trained head"
    raise ModelRefused(
        f"the source has {given}, the target's labels are {_listed(labels)}: it cannot teach them as it is. Give "
        "transfer.distill.teacher (steps, learning_rate, …) to fine-tune a copy first, or leave the distill arms out"
    )


def _refuse_new_weights(model: nn.Module, folder: Path, task: TaskName) -> None:
    new = names_not_in_files(model, folder)
    if new:
        raise ModelRefused(
            f"the source has no trained head for {task}: {new[0]} is in none of its files, so it cannot teach as it "
            "is. Give transfer.distill.teacher (steps, learning_rate, …) to fine-tune a copy first, or leave the "
            "distill arms out"
        )


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")
