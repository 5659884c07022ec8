"""One trial from its spec to its result: resumed where an earlier attempt got to, stopped between steps when asked."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import datasets
from transformers.utils import logging as transformers_logging

from mergenet_core.records.job import ArmCost, Checkpoint, Trial, TrialResult
from mergenet_core.records.provenance import Provenance
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import DISTILLS, Arm, prepare_arm, prepare_source
from mergenet_core.training.checkpoint import publish, resume
from mergenet_core.training.export import environment, export_adapter, export_model
from mergenet_core.training.peak import peak_bytes, reset_peak
from mergenet_core.training.protocols import Control, Interrupted, Reporter
from mergenet_core.training.selection import Selection
from mergenet_core.training.teacher import Teacher, prepare_teacher

__all__ = ["Control", "Interrupted", "Reporter", "run_trial"]

ASKED: tuple[Literal["checkpoint", "stop"] | None, ...] = (None, "checkpoint", "stop")
"""What a process can be asked; where several are asked, the later of these counts for all."""
LOGGED_STEPS = 200
"""At most so many training losses are reported, evenly spaced."""


@dataclass(frozen=True)
class _Run:
    """A trial under way, and where it reports."""

    arm: Arm
    selection: Selection
    reporter: Reporter
    publish: Callable[[], Checkpoint]
    keep_state: Callable[[], None]
    """Export the source as it is, where this is one of the states that the target is to learn from."""
    stop_if_asked: Callable[[], bool]


def run_trial(
    job: JobSpec,
    trial: Trial,
    folder: JobFolder,
    roots: Roots,
    *,
    attempt: int,
    reporter: Reporter,
    control: Control,
) -> TrialResult:
    """Train the source, or one arm at one seed, and export it; goes on from the newest checkpoint that verifies.

    Raises: `Interrupted` after a checkpoint when asked to stop; `TrainingDiverged`, `OutOfMemory`, `StorageFull`,
    `ModelRefused`, `DataRefused`, `PairingRefused`.
    """
    reset_peak()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    arm = prepare_source(job, roots) if trial.kind == "source" else prepare_arm(job, trial, folder, roots)
    trial_folder = folder.trial(trial.id)
    training, selection = arm.training, Selection()
    for reason in resume(training, selection, trial_folder):
        reporter.event("checkpoint.refused", f"{reason}; an older one is used", level="warning")
    if training.step:
        reporter.event("trial.resumed", f"goes on from step {training.step}", step=training.step)

    def publish_now() -> Checkpoint:
        about: Provenance = {"trial": trial.id, "seed": trial.seed}
        keep = job.retention.checkpoints
        checkpoint = publish(training, selection, trial_folder, attempt=attempt, keep=keep, about=about)
        reporter.checkpoint(checkpoint)
        return checkpoint

    def stop_if_asked() -> bool:
        asked = ASKED[training.engine.world.largest(ASKED.index(control.requested()))]
        if asked is not None:
            checkpoint = publish_now()
            if asked == "stop":
                raise Interrupted(checkpoint)
        return asked is not None

    teacher = None
    if trial.arm in DISTILLS:
        reporter.event("teacher.preparing", "the teacher is made ready; steps are counted after that")
        teacher = prepare_teacher(
            job,
            trial,
            folder,
            roots,
            arm.task.labels,
            training.engine.world,
            attempt=attempt,
            stop_if_asked=stop_if_asked,
        )
        reporter.event(
            "teacher.ready", f"the teacher's test {arm.task.metric} is {teacher.test:.4f}", test=teacher.test
        )
        training.distillation = teacher.distillation
    training.start()

    def about() -> Provenance:
        return {"step": training.step, "seed": trial.seed, "trial": trial.id}

    def keep_state() -> None:
        if trial.kind == "source" and training.step in job.source.kept_steps:
            place = folder.source_state(training.step)
            export_model(training.engine, arm.task.processor, place, attempt=attempt, about=about())

    run = _Run(arm, selection, reporter, publish_now, keep_state, stop_if_asked)
    _train(run)
    place = folder.source if trial.kind == "source" else trial_folder / "model"
    export_model(training.engine, arm.task.processor, place, attempt=attempt, about=about())
    if arm.transfer is not None and arm.pairing is not None and training.engine.world.main:
        export_adapter(
            arm.transfer, arm.pairing, job.transfer, trial_folder / "adapter", attempt=attempt, about=about()
        )
    if training.partner is not None and job.transfer.back_cycle is not None:
        partner = training.partner
        export_model(
            partner.engine, partner.task.processor, trial_folder / "source-model", attempt=attempt, about=about()
        )
    return _measure(run, teacher)


def _train(run: _Run) -> None:
    training, spec = run.arm.training, run.arm.training.spec
    eval_every = spec.eval_every or max(1, spec.steps // 10)
    checkpoint_every = spec.checkpoint_every or max(1, spec.steps // 5)
    log_every = max(1, spec.steps // LOGGED_STEPS)
    resumed_at = training.step
    while True:
        step, last = training.step, training.step == spec.steps
        if (step % eval_every == 0 or last) and run.selection.evaluated != step:
            metrics = training.evaluate(run.arm.task.validation)
            run.selection.look(step, metrics[run.arm.task.metric], training.engine.snapshot)
            run.reporter.metric(step, "validation", metrics)
        run.keep_state()  # before a checkpoint, so that a run which goes on from there has it
        published = run.stop_if_asked()
        due = step % checkpoint_every == 0 or last
        if due and step > resumed_at and not published:
            run.publish()
        if last:
            return
        training.advance()
        if training.step % log_every == 0 or training.step == spec.steps:
            run.reporter.metric(training.step, "train", {"loss": training.loss})
        remaining = (spec.steps - training.step) * training.seconds / training.step
        run.reporter.progress(
            training.step, spec.steps, loss=training.loss, metric=run.selection.newest, eta_seconds=remaining
        )


def _measure(run: _Run, teacher: Teacher | None) -> TrialResult:
    training, selection, task = run.arm.training, run.selection, run.arm.task
    transfer = run.arm.transfer
    assert selection.newest is not None
    assert selection.best is not None
    assert selection.weights is not None
    metrics, world = training.evaluate(task.test), training.engine.world
    last = {"test": metrics[task.metric], "validation": selection.newest}
    training.engine.restore(selection.weights)
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
        metrics=metrics,
        cost=ArmCost(
            step_seconds=statistics.median(training.step_seconds),
            train_seconds=training.seconds,
            extra_seconds=training.extra_seconds + (teacher.seconds if teacher is not None else 0.0),
        ),
        memory_bytes=world.largest(peak_bytes(world.device)),
        strategy=world.strategy,
        parameters=run.arm.parameters,
        adapter_parameters=transfer.parameters_count if transfer is not None else 0,
        transferred_parameters=transfer.transferred_parameters if transfer is not None else 0,
        versions=environment(),
        data=dict(task.data_summary),
        source=training.partner.evaluate(training.partner.task.test) if training.partner is not None else {},
        teacher={"test": teacher.test} if teacher is not None else {},
    )
