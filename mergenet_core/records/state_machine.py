"""The state machine of a job: pure functions from a record to the next one.

A trial's transitions carry the attempt that asks for them, and an old attempt is refused. The job's own state is
never set by hand: `_settled` derives it from its trials and from what the user asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from mergenet_core.errors import StaleAttempt, StateConflict
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import TERMINAL, Checkpoint, Job, Request, Trial, TrialResult, TrialState
from mergenet_core.records.record import now

ACTIVE: frozenset[TrialState] = frozenset({"starting", "running"})
BACKOFF_SECONDS = 1.0
"""Pause before a trial's second attempt; it doubles with every failure, up to a minute."""
_OPEN: frozenset[TrialState] = frozenset({"waiting", "queued", "starting", "running", "paused"})
_UNDER_WAY = ACTIVE | {"queued"}
_CURABLE = frozenset({"storage-full"})
"""Not worth another try by itself, but worth one when the operator has acted."""


def submit(job: Job) -> Job:
    """Queue what can start at once."""
    return _settled(job)


def claim(job: Job, attempt: AttemptRef, worker: str) -> Job:
    """A worker takes a queued trial.

    Raises: `StaleAttempt` when the trial is not waiting for exactly that attempt, as after a second delivery.
    """
    trial = job.trial(attempt.trial_id)
    if trial.state != "queued" or trial.attempt + 1 != attempt.number or job.state in TERMINAL:
        raise StaleAttempt(
            f"{attempt.trial_path} is {trial.state} at attempt {trial.attempt}, not queued for {attempt.number}"
        )
    job = job.model_copy(update={"started_at": job.started_at or now()})
    taken = _with(job, trial, state="starting", attempt=attempt.number, worker=worker, reason=None, not_before=None)
    return _settled(taken)


def waits(job: Job, attempt: AttemptRef, why: str | None) -> Job:
    """The attempt cannot begin yet, and `why` says what it waits for; None when it does so no more."""
    return _settled(_with(job, _owned(job, attempt), reason=why))


def started(job: Job, attempt: AttemptRef) -> Job:
    """The attempt's training has begun."""
    return _settled(_with(job, _owned(job, attempt), state="running", reason=None))


def checkpointed(job: Job, attempt: AttemptRef, checkpoint: Checkpoint) -> Job:
    """Point the trial at a published checkpoint; a user's request for one is thereby met."""
    trial = _owned(job, attempt)
    request = None if job.request == "checkpoint" else job.request
    return _settled(_with(job.model_copy(update={"request": request}), trial, checkpoint=checkpoint))


def commit(job: Job, attempt: AttemptRef, *, result: TrialResult | None = None, artifact: str | None = None) -> Job:
    """The trial's one committed result; for `finalize`, the job's artifact."""
    trial = _owned(job, attempt)
    if job.request == "checkpoint":  # a finished trial has written more than what was asked for
        job = job.model_copy(update={"request": None})
    job = _with(job, trial, state="succeeded", result=result, worker=None, reason=None)
    if trial.kind == "finalize":
        job = job.model_copy(update={"artifact": artifact})
    return _settled(job)


def fail(job: Job, attempt: AttemptRef, *, code: str, reason: str, retryable: bool) -> Job:
    """The attempt ended in an error: queue the trial again where that can help, else the job has failed."""
    trial = _owned(job, attempt)
    stopped = _stopped_state(job)
    if stopped is not None:
        return _settled(_with(job, trial, state=stopped, worker=None, reason=reason))
    if retryable and trial.failures + 1 < job.max_attempts:
        not_before = now() + timedelta(seconds=min(60.0, BACKOFF_SECONDS * 2**trial.failures))
        failures = trial.failures + 1
        return _settled(
            _with(job, trial, state="queued", failures=failures, worker=None, reason=reason, not_before=not_before),
            code=code,
            reason=f"{trial.id} goes on from its newest checkpoint: {reason}",
        )
    if retryable:
        reason = f"{reason} ({trial.failures + 1} attempts, none succeeded)"
    job = _with(job, trial, state="failed", worker=None, reason=reason)
    resumable = retryable or code in _CURABLE
    return _settled(job.model_copy(update={"retryable": resumable}), code=code, reason=f"{trial.id}: {reason}")


def hand_back(job: Job, attempt: AttemptRef, reason: str) -> Job:
    """The worker stops and gives the trial back, its checkpoint published; that is no failure."""
    trial = _owned(job, attempt)
    stopped = _stopped_state(job)
    if stopped is not None:
        return _settled(_with(job, trial, state=stopped, worker=None, reason=None))
    return _settled(_with(job, trial, state="queued", worker=None, reason=reason), code="handed-back", reason=reason)


def request(job: Job, what: Request) -> Job:
    """A user asks for a pause, a cancel or a checkpoint. Raises: `StateConflict` where the state does not allow it."""
    if what == "cancel" and (job.request == "cancel" or job.state == "cancelled"):
        return job
    if job.state in TERMINAL:
        raise StateConflict(f"the job is {job.state}; there is nothing left to {what}")
    if what == "pause" and job.state in ("pausing", "paused"):
        return job
    if job.request == "cancel":
        raise StateConflict(f"the job is being cancelled; it cannot {what} any more")
    if what == "checkpoint" and job.request == "pause":
        return job  # pausing writes one
    if what == "checkpoint" and not any(trial.state in ACTIVE and trial.kind != "finalize" for trial in job.trials):
        raise StateConflict("nothing is training just now; ask again when the job is running")
    return _settled(job.model_copy(update={"request": what}))


def resume(job: Job) -> Job:
    """Go on with a paused job, or with one that failed for a reason that may have passed.

    Raises: `StateConflict` in any other state.
    """
    revivable = job.state == "failed" and job.retryable
    if job.state not in ("paused", "pausing") and not revivable:
        raise StateConflict(f"the job is {job.state}; only a paused job, or a failed one marked retryable, can resume")
    trials = tuple(
        trial.model_copy(update={"state": "waiting", "failures": 0, "not_before": None})
        if trial.state in ("paused", "failed", "cancelled")
        else trial
        for trial in job.trials
    )
    return _settled(
        job.model_copy(
            update={"trials": trials, "request": None, "retryable": False, "finished_at": None, "state": "queued"}
        )
    )


def _owned(job: Job, attempt: AttemptRef) -> Trial:
    trial = job.trial(attempt.trial_id)
    if trial.attempt != attempt.number or trial.state not in ACTIVE or job.state in TERMINAL:
        raise StaleAttempt(
            f"attempt {attempt.number} of {attempt.trial_path} is refused: "
            f"the trial is {trial.state} at attempt {trial.attempt}"
        )
    return trial


def _with(job: Job, trial: Trial, **changes: Any) -> Job:
    changed = trial.model_copy(update=changes)
    return job.model_copy(update={"trials": tuple(changed if old.id == trial.id else old for old in job.trials)})


def _stopped_state(job: Job) -> TrialState | None:
    return {"cancel": "cancelled", "pause": "paused"}.get(job.request or "")  # type: ignore[return-value]


def _settled(job: Job, code: str | None = None, reason: str | None = None) -> Job:
    """Move what waits, then derive the job's state."""
    job = _map_trials(job, lambda trial: _moved(job, trial))
    states = [trial.state for trial in job.trials]
    active = any(state in ACTIVE for state in states)
    finalizing = any(trial.kind == "finalize" and trial.state in _UNDER_WAY for trial in job.trials)
    update: dict[str, Any]
    if "failed" in states:
        update = {"state": "failed"}
    elif all(state == "succeeded" for state in states):
        update = {"state": "succeeded", "code": "done", "reason": "every trial succeeded; the artifact is ready"}
    elif job.request == "cancel":
        ending = "the running trial writes a checkpoint and stops" if active else "cancelled on request"
        update = {"state": "cancelling" if active else "cancelled", "code": "requested", "reason": ending}
    elif job.request == "pause":
        ending = "the running trial writes a checkpoint and stops" if active else "paused on request; resume goes on"
        update = {"state": "pausing" if active else "paused", "code": "requested", "reason": ending}
    elif finalizing:
        update = {"state": "finalizing", "code": "finalizing", "reason": "the report and the artifact are being made"}
    elif "running" in states:
        done = sum(trial.state == "succeeded" for trial in job.trials)
        update = {"state": "running", "code": "training", "reason": f"{done} of {len(states)} trials done"}
    elif any(trial.state == "queued" and trial.failures for trial in job.trials):
        update = {"state": "recovering"}
    elif "starting" in states and "succeeded" not in states:
        update = {"state": "starting", "code": "starting", "reason": "a worker loads models and data"}
    elif "succeeded" in states:
        done = sum(trial.state == "succeeded" for trial in job.trials)
        update = {"state": "running", "code": "training", "reason": f"{done} of {len(states)} trials done"}
    else:
        update = {"state": "queued", "code": "waiting-for-worker", "reason": "waits for a free worker"}
    if code is not None:
        update |= {"code": code, "reason": reason}
    update["updated_at"] = now()
    if update["state"] in TERMINAL:
        update |= {"finished_at": now(), "request": None}
        job = _map_trials(job, lambda trial: _abandoned(trial) if trial.state in _OPEN else trial)
    return job.model_copy(update=update)


def _moved(job: Job, trial: Trial) -> Trial:
    """Queue a trial whose needs are met; take a queued one back when the job is to stop."""
    stopped = _stopped_state(job)
    if stopped is not None:
        return trial.model_copy(update={"state": stopped}) if trial.state in ("waiting", "queued") else trial
    if trial.state == "waiting" and all(job.trial(need).state == "succeeded" for need in trial.needs):
        return trial.model_copy(update={"state": "queued"})
    return trial


def _abandoned(trial: Trial) -> Trial:
    return trial.model_copy(update={"state": "cancelled", "worker": None})


def _map_trials(job: Job, change: Callable[[Trial], Trial]) -> Job:
    return job.model_copy(update={"trials": tuple(change(trial) for trial in job.trials)})
