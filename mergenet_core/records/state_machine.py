"""The state machine of a job: pure functions from one record to the next.

Transitions of a trial name the attempt that makes them, and an old attempt is refused. The state of the job itself is
never set directly: `_derived` computes it from the trials and from what the user asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from mergenet_core.errors import (
    DeadlineExceeded,
    NodeLost,
    StaleAttempt,
    StateConflict,
    StorageFull,
    Unavailable,
    WorkerLost,
)
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import TERMINAL, Checkpoint, Job, JobState, Request, Trial, TrialResult, TrialState
from mergenet_core.records.record import now

ACTIVE: frozenset[TrialState] = frozenset({"starting", "running"})
BACKOFF_SECONDS = 1.0
"""Pause before a trial's second attempt; it doubles with every failure, up to a minute."""
LOSSES_MAX = 20
"""Attempts at a trial that may be lost with their worker, host or Redis."""
_INFRASTRUCTURE = frozenset({WorkerLost.code, NodeLost.code, Unavailable.code})
"""Not the trial's own fault, and so counted apart from crashes."""
_OPEN: frozenset[TrialState] = frozenset({"waiting", "queued", "starting", "running", "paused"})
_UNDER_WAY = ACTIVE | {"queued"}
_CURABLE = frozenset({StorageFull.code})
"""Not worth another attempt by itself, but worth one once the operator has acted."""


@dataclass(frozen=True)
class _Why:
    """Why a job is in its state: a stable code, and the reason as a sentence."""

    code: str
    reason: str


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
    """The attempt cannot begin yet, for the reason `why`; None once it can."""
    return _settled(_with(job, _owned(job, attempt), reason=why))


def started(job: Job, attempt: AttemptRef) -> Job:
    """The attempt's training has begun."""
    return _settled(_with(job, _owned(job, attempt), state="running", reason=None))


def checkpointed(job: Job, attempt: AttemptRef, checkpoint: Checkpoint) -> Job:
    """Record a trial's published checkpoint; this fulfils a user's request for one."""
    trial = _owned(job, attempt)
    request = None if job.request == "checkpoint" else job.request
    return _settled(_with(job.model_copy(update={"request": request}), trial, checkpoint=checkpoint))


def commit(job: Job, attempt: AttemptRef, *, result: TrialResult | None = None, artifact: str | None = None) -> Job:
    """Commit a trial's result, once; for the trial `finalize`, the job's artifact."""
    trial = _owned(job, attempt)
    if job.request == "checkpoint":  # a finished trial has written more than a checkpoint
        job = job.model_copy(update={"request": None})
    job = _with(job, trial, state="succeeded", result=result, worker=None, reason=None)
    if trial.kind == "finalize":
        job = job.model_copy(update={"artifact": artifact})
    return _settled(job)


def fail(job: Job, attempt: AttemptRef, *, code: str, reason: str, retryable: bool, at: datetime | None = None) -> Job:
    """The attempt ended in an error: queue the trial again where that can help, else fail the job.

    `at` is the time from which the pause is counted; default: this host's.
    """
    trial = _owned(job, attempt)
    stopped = _stopped_state(job)
    if stopped is not None:
        return _settled(_with(job, trial, state=stopped, worker=None, reason=reason))
    lost = code in _INFRASTRUCTURE
    again = trial.losses + 1 < LOSSES_MAX if lost else trial.failures + 1 < job.max_attempts
    if retryable and again:
        pause = min(60.0, BACKOFF_SECONDS * 2 ** (trial.failures + trial.losses))
        counts = {"losses": trial.losses + 1} if lost else {"failures": trial.failures + 1}
        not_before = (at or now()) + timedelta(seconds=pause)
        return _settled(
            _with(job, trial, state="queued", worker=None, reason=reason, not_before=not_before, **counts),
            _Why(code, f"{trial.id} continues from its newest checkpoint: {reason}"),
        )
    if retryable:
        reason = f"{reason} ({trial.failures + trial.losses + 1} attempts, none succeeded)"
    job = _with(job, trial, state="failed", worker=None, reason=reason)
    resumable = retryable or code in _CURABLE
    return _settled(job.model_copy(update={"retryable": resumable}), _Why(code, f"{trial.id}: {reason}"))


def expire(job: Job) -> Job:
    """The job's deadline is over: it fails, and whatever runs of it ends. Of a job that has ended nothing changes."""
    if job.state in TERMINAL:
        return job
    trial = next(trial for trial in job.trials if trial.state in _OPEN)
    reason = f"{trial.id} was not done {job.deadline_seconds} s after the job first ran (resources.deadline_seconds)"
    job = _with(job, trial, state="failed", worker=None, reason=reason)
    return _settled(job, _Why(DeadlineExceeded.code, reason))


def hand_back(job: Job, attempt: AttemptRef, reason: str) -> Job:
    """The worker stops and gives the trial back after publishing a checkpoint; this is no failure."""
    trial = _owned(job, attempt)
    stopped = _stopped_state(job)
    if stopped is not None:
        return _settled(_with(job, trial, state=stopped, worker=None, reason=None))
    return _settled(_with(job, trial, state="queued", worker=None, reason=reason), _Why("handed-back", reason))


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
    """Continue a paused job, or one that failed for a reason that may have passed.

    Raises: `StateConflict` in any other state.
    """
    revivable = job.state == "failed" and job.retryable
    if job.state not in ("paused", "pausing") and not revivable:
        raise StateConflict(f"the job is {job.state}; only a paused job, or a failed one marked retryable, can resume")
    trials = tuple(
        trial.model_copy(update={"state": "waiting", "failures": 0, "losses": 0, "not_before": None})
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


def _with(job: Job, trial: Trial, **changes: object) -> Job:
    changed = trial.model_copy(update=changes)
    return job.model_copy(update={"trials": tuple(changed if old.id == trial.id else old for old in job.trials)})


def _stopped_state(job: Job) -> Literal["cancelled", "paused"] | None:
    """The state of a trial that stops because of what the user asked for."""
    if job.request == "cancel":
        return "cancelled"
    return "paused" if job.request == "pause" else None


def _settled(job: Job, why: _Why | None = None) -> Job:
    """Queue what can start, then derive the job's state, with `why` in place of the usual code and reason."""
    job = _map_trials(job, lambda trial: _moved(job, trial))
    state, usual = _derived(job)
    why = why or usual
    changes: dict[str, object] = {"state": state, "code": why.code, "reason": why.reason, "updated_at": now()}
    if state in TERMINAL:
        changes |= {"finished_at": now(), "request": None}
        job = _map_trials(job, lambda trial: _abandoned(trial) if trial.state in _OPEN else trial)
    return job.model_copy(update=changes)


def _derived(job: Job) -> tuple[JobState, _Why]:
    """The state that follows from a job's trials and from what the user asked for, and why it is that one."""
    states = [trial.state for trial in job.trials]
    active = any(state in ACTIVE for state in states)
    unchanged = _Why(job.code, job.reason)
    training = _Why("training", f"{states.count('succeeded')} of {len(states)} trials done")
    if "failed" in states:
        return "failed", unchanged
    if all(state == "succeeded" for state in states):
        return "succeeded", _Why("done", "every trial succeeded; the artifact is ready")
    if job.request in ("cancel", "pause") and active:
        why = _Why("requested", "the running trial writes a checkpoint and stops")
        return "cancelling" if job.request == "cancel" else "pausing", why
    if job.request == "cancel":
        return "cancelled", _Why("requested", "cancelled on request")
    if job.request == "pause":
        return "paused", _Why("requested", "paused on request; resume continues it")
    if any(trial.kind == "finalize" and trial.state in _UNDER_WAY for trial in job.trials):
        return "finalizing", _Why("finalizing", "the report and the artifact are being made")
    if "running" in states:
        return "running", training
    if any(trial.state == "queued" and trial.failures + trial.losses for trial in job.trials):
        return "recovering", unchanged
    if "starting" in states and "succeeded" not in states:
        return "starting", _Why("starting", "a worker loads models and data")
    if "succeeded" in states:
        return "running", training
    return "queued", _Why("waiting-for-worker", "waits for a free worker")


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
