"""Does the work of a worker: takes a job's trials through the state machine and publishes a result."""

from __future__ import annotations

import json
from pathlib import Path

from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import ArmCost, Checkpoint, Job, TrialResult
from mergenet_core.results.report import ArmReport, Report
from mergenet_core.storage.paths import JobFolder
from mergenet_core.storage.published_folder import publishing
from mergenet_core.store.jobs import Store

WEIGHTS = bytes(range(256)) * 40


def start(store: Store, job_id: str, trial_id: str) -> Job:
    before = store.get(job_id)
    attempt = before.next_attempt(before.trial(trial_id))
    store.update(job_id, lambda job: state_machine.claim(job, attempt, "worker-of-test"))
    return store.update(job_id, lambda job: state_machine.started(job, attempt))


def newest_attempt(store: Store, job_id: str, trial_id: str) -> AttemptRef:
    job = store.get(job_id)
    return job.attempt(job.trial(trial_id))


def commit(store: Store, job_id: str, trial_id: str, artifact: str | None = None) -> Job:
    attempt = newest_attempt(store, job_id, trial_id)
    result = None
    if artifact is None:
        cost = ArmCost(step_seconds=0.01, train_seconds=0.04)
        result = TrialResult(
            steps=4,
            final_loss=0.5,
            metric="accuracy",
            last={"test": 0.8, "validation": 0.7},
            cost=cost,
            parameters=2354,
        )
    return store.update(job_id, lambda job: state_machine.commit(job, attempt, result=result, artifact=artifact))


def fail(store: Store, job_id: str, trial_id: str, *, retryable: bool = False) -> Job:
    attempt = newest_attempt(store, job_id, trial_id)
    return store.update(
        job_id,
        lambda job: state_machine.fail(job, attempt, code="internal", reason="it broke", retryable=retryable),
    )


def checkpoint(store: Store, job_id: str, trial_id: str, folder: JobFolder) -> None:
    attempt = newest_attempt(store, job_id, trial_id)
    path = folder.trial(trial_id) / "checkpoints" / "2"
    path.mkdir(parents=True)
    made = Checkpoint(step=2, path=str(path.relative_to(folder.path)), manifest_sha256="0" * 64, attempt=attempt.number)
    store.update(job_id, lambda job: state_machine.checkpointed(job, attempt, made))


def finish(store: Store, job_id: str, folder: JobFolder) -> Path:
    """Finish all trials of a job and publish its artifact; returns the artifact's folder."""
    for trial in store.get(job_id).trials[:-1]:
        start(store, job_id, trial.id)
        commit(store, job_id, trial.id)
    start(store, job_id, "finalize")
    with publishing(folder.artifact, kind="artifact", step=4, attempt=1, roles={"model.safetensors": "model"}) as draft:
        (draft / "model").mkdir()
        (draft / "model" / "model.safetensors").write_bytes(WEIGHTS)
        (draft / "report.json").write_text(report(job_id).model_dump_json())
        (draft / "job.json").write_text(json.dumps({"name": "digits"}))
    commit(store, job_id, "finalize", artifact="artifact")
    return folder.artifact


def report(job_id: str) -> Report:
    arms = tuple(
        ArmReport(
            arm=arm,
            seeds=(0,),
            last=(0.8,),
            best=(0.8,),
            mean=0.8,
            sd=None,
            step_seconds=0.01,
            seconds=0.1,
            difference=None,
        )
        for arm in ("transfer", "control")
    )
    return Report(
        job=job_id,
        name="digits",
        metric="accuracy",
        steps=4,
        arms=arms,
        verdict="one seed",
        sentence="one seed shows no spread",
        chosen="transfer-0",
        transferred=True,
    )
