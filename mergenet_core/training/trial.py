"""One trial from its spec to its result: resumed from its newest checkpoint, stopped between steps on request."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
from transformers.utils import logging as transformers_logging

from mergenet_core.baselines.inputs import TRAIN_MAX, input_baseline
from mergenet_core.baselines.probe import linear_probe
from mergenet_core.errors import MergeNetError
from mergenet_core.records.job import ArmCost, Checkpoint, Trial, TrialResult
from mergenet_core.records.outcomes import pack_outcomes
from mergenet_core.records.provenance import Provenance
from mergenet_core.spec.job import DISTILLS, JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import prepare_training
from mergenet_core.training.checkpoint import publish, resume
from mergenet_core.training.context import TrialContext, open_trial
from mergenet_core.training.distillation.distill import Distillation
from mergenet_core.training.distillation.teacher import Teacher, prepare_teacher
from mergenet_core.training.engines.tensors import restore, snapshot
from mergenet_core.training.export import environment, export_adapter, export_fit, export_model
from mergenet_core.training.loop import Training
from mergenet_core.training.peak import peak_bytes, reset_peak
from mergenet_core.training.protocols import REQUESTS, AttemptContext, Control, Interrupted, Reporter
from mergenet_core.training.selection import Selection
from mergenet_core.training.sources import may_probe, source_to_probe

__all__ = ["AttemptContext", "Control", "Interrupted", "Reporter", "run_trial"]

LOGGED_STEPS = 200
"""The most training losses that are reported; they are evenly spaced."""


@dataclass(frozen=True)
class _Run:
    """A running trial."""

    context: TrialContext
    attempt: AttemptContext
    training: Training
    selection: Selection = field(default_factory=Selection)

    @property
    def reporter(self) -> Reporter:
        return self.attempt.reporter

    @property
    def trial_folder(self) -> Path:
        return self.context.folder.trial(self.context.trial.id)

    def publish(self) -> Checkpoint:
        """Publish a checkpoint and report it."""
        trial = self.context.trial
        checkpoint = publish(
            self.training,
            self.selection,
            self.trial_folder,
            attempt=self.attempt.number,
            keep=self.context.job.retention.checkpoints,
            about={"trial": trial.id, "seed": trial.seed},
        )
        self.reporter.checkpoint(checkpoint)
        return checkpoint

    def stop_if_requested(self) -> bool:
        """Publish a checkpoint if any process was asked to; return whether it was. Raises: `Interrupted`."""
        requested = REQUESTS[self.training.engine.world.largest(REQUESTS.index(self.attempt.control.requested()))]
        if requested is not None:
            checkpoint = self.publish()
            if requested == "stop":
                raise Interrupted(f"stopped at step {checkpoint.step}", checkpoint)
        return requested is not None

    def export(self, training: Training, folder: Path) -> None:
        """Publish a model in training as it is now."""
        export_model(training.engine, training.task.processor, folder, attempt=self.attempt.number, about=self.about())

    def export_source_state(self) -> None:
        """Export the source as it is now, if this is one of the states that the target is to learn from."""
        context, step = self.context, self.training.step
        if context.trial.kind == "source" and step in context.job.source.kept_steps:
            self.export(self.training, context.folder.source_state(step))

    def about(self) -> Provenance:
        """What an exported model comes from."""
        trial = self.context.trial
        return {"step": self.training.step, "seed": trial.seed, "trial": trial.id}


def run_trial(job: JobSpec, trial: Trial, folder: JobFolder, roots: Roots, attempt: AttemptContext) -> TrialResult:
    """Train the source, or one arm at one seed, and export it; resumes from the newest checkpoint that verifies.

    Raises: `Interrupted` after a checkpoint when asked to stop; `TrainingDiverged`, `OutOfMemory`, `StorageFull`,
    `ModelRefused`, `DataRefused`, `PairingRefused`, `CheckpointInvalid`.
    """
    reset_peak()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    context = open_trial(job, trial, folder, roots)
    training = prepare_training(context, attempt)
    run = _Run(context, attempt, training)
    for reason in resume(training, run.selection, run.trial_folder):
        attempt.reporter.event("checkpoint.refused", f"{reason}; an older one is used", level="warning")
    if training.step:
        attempt.reporter.event("trial.resumed", f"resumed at step {training.step}", step=training.step)
    teacher = _prepare_teacher(run) if trial.arm in DISTILLS else None
    training.start()
    _train(run, teacher.distillation if teacher is not None else None)
    _export(run)
    return _measure(run, teacher)


def _prepare_teacher(run: _Run) -> Teacher:
    task = run.training.task
    run.reporter.event("teacher.preparing", "preparing the teacher; steps are counted after that")
    teacher = prepare_teacher(run.context, task, attempt=run.attempt.number, stop_if_requested=run.stop_if_requested)
    run.reporter.event("teacher.ready", f"the teacher's test {task.metric} is {teacher.test:.4f}", test=teacher.test)
    return teacher


def _train(run: _Run, distillation: Distillation | None) -> None:
    training, spec = run.training, run.training.spec
    eval_every = spec.eval_every or max(1, spec.steps // 10)
    checkpoint_every = spec.checkpoint_every or max(1, spec.steps // 5)
    log_every = max(1, spec.steps // LOGGED_STEPS)
    resumed_at = training.step
    while True:
        step, last = training.step, training.step == spec.steps
        if (step % eval_every == 0 or last) and run.selection.evaluated != step:
            task, examples = training.task, training.task.validation
            answers_n = training.answers(examples)
            metrics = task.measure(answers_n, examples)
            run.selection.update(step, metrics[task.metric], partial(snapshot, training.engine))
            if last:
                run.selection.terms = task.terms(answers_n, examples).tolist()
            run.reporter.metric(step, "validation", metrics)
        run.export_source_state()  # before a checkpoint, so that a run resumed from there has it
        published = run.stop_if_requested()
        due = step % checkpoint_every == 0 or last
        if due and step > resumed_at and not published:
            run.publish()
        if last:
            return
        run.reporter.begin_step()
        training.advance(distillation)
        if training.step % log_every == 0 or training.step == spec.steps:
            run.reporter.metric(training.step, "train", {"loss": training.loss})
        remaining = (spec.steps - training.step) * training.seconds / training.step
        run.reporter.progress(
            training.step, spec.steps, loss=training.loss, metric=run.selection.newest, eta_seconds=remaining
        )


def _export(run: _Run) -> None:
    """Publish the trained model, the adapter, and a joint source that gained from the target."""
    job, training, folder = run.context.job, run.training, run.trial_folder
    run.export(training, run.context.folder.source if run.context.trial.kind == "source" else folder / "model")
    if training.fitted is not None and training.engine.world.main:
        export_fit(training.fitted, job.transfer, folder / "adapter", attempt=run.attempt.number, about=run.about())
    if training.transfer is not None and training.engine.world.main:
        export_adapter(
            training.transfer, job.transfer, folder / "adapter", attempt=run.attempt.number, about=run.about()
        )
    if training.joint_source is not None and job.transfer.back_cycle is not None:
        run.export(training.joint_source, folder / "source-model")


def _transferred_parameters(training: Training) -> int:
    """Entries of the target's parameters that the source wrote."""
    if training.fitted is not None:
        return training.fitted.pairing.transferable_parameters
    return training.transfer.transferred_parameters if training.transfer is not None else 0


def _measure(run: _Run, teacher: Teacher | None) -> TrialResult:
    training, selection, task = run.training, run.selection, run.training.task
    transfer, source = training.transfer, training.joint_source
    assert selection.newest is not None
    assert selection.best is not None
    assert selection.weights is not None
    metrics, world = training.evaluate(task.test), training.engine.world
    last = {"test": metrics[task.metric], "validation": selection.newest}
    restore(training.engine, selection.weights)
    again = metrics if selection.best_step == training.step else training.evaluate(task.test)
    best = {"test": again[task.metric], "validation": selection.best, "step": float(selection.best_step)}
    for name, values in (("last", last), ("best", best)):
        run.reporter.metric(training.step, "test", {f"{task.metric}_{name}": values["test"]})
    return TrialResult(
        steps=training.spec.steps,
        final_loss=training.loss,
        metric=task.metric,
        last=last,
        best=best,
        outcomes=pack_outcomes(selection.terms),
        metrics=metrics,
        cost=ArmCost(
            step_seconds=statistics.median(training.step_seconds),
            train_seconds=training.seconds,
            extra_seconds=training.extra_seconds + (teacher.seconds if teacher is not None else 0.0),
            source_seconds=source.seconds + source.extra_seconds
            if source is not None and transfer is not None
            else 0.0,
        ),
        memory_bytes=world.largest(peak_bytes(world.device)),
        strategy=world.strategy,
        parameters=training.parameters,
        adapter_parameters=transfer.parameters_count if transfer is not None else 0,
        transferred_parameters=_transferred_parameters(training),
        versions=environment(),
        data=dict(task.data_summary),
        source=source.evaluate(source.task.test) if source is not None else {},
        teacher={"test": teacher.test} if teacher is not None else {},
        baselines=_baselines(run) if world.main else {},
    )


def _baselines(run: _Run) -> dict[str, float]:
    """The trivial baseline of the task, in the control's trial; a linear probe of the source, in the transfer's."""
    context, task = run.context, run.training.task
    if context.trial.arm == "control":
        return input_baseline(task)
    wanted = "transfer" if "transfer" in context.job.arms else "transfer+distill"
    tried = context.trial.candidate
    if tried is not None and tried.include != "all":
        return {}  # another candidate of the same seed has it
    if context.trial.arm != wanted or not may_probe(context.job) or len(task.train) > TRAIN_MAX:
        return {}
    world = context.world
    try:
        model, task_of_source = source_to_probe(context, task.labels)
        with world.accelerator.autocast():
            return {"probe": linear_probe(model, task_of_source, world.device, context.folder.probe_features)}
    except MergeNetError as error:
        run.reporter.event("baseline.left-out", f"no linear probe of the source: {error.message}", level="warning")
        return {}
