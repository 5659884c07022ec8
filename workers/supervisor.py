"""One attempt at one trial: claim it, run its training process, keep the lease, record how it ended.

RQ runs this function in a process that it forks for each message, which RQ calls the work horse. It never imports
torch: the training is a process tree of its own, so that it can be ended even when it hangs. Nothing is written after
the lease has run out, and the record of a newer attempt refuses what an older one writes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import time
from datetime import datetime
from types import FrameType

from redis.exceptions import RedisError

from mergenet_core.errors import FULL_DISK, MergeNetError, NotFound, StorageFull, TrainingHung
from mergenet_core.processes import trees
from mergenet_core.processes.command import python_command
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Checkpoint, Job, Trial
from mergenet_core.settings import Settings
from mergenet_core.storage import published_folder
from mergenet_core.storage.retention import drop_trials
from mergenet_core.store import rq_queue
from mergenet_core.store.clock import redis_now
from mergenet_core.store.device_leases import Lease
from mergenet_core.store.fleet_queue import QueueEntry
from workers import processes
from workers.attempt import Attempt
from workers.device_lease import gpu_environment, release, wait_for_devices
from workers.gang.member import ADDRESS, SILENCE
from workers.host import capacity, memory, prewarm
from workers.outcome import OUTCOME_FD, Outcome, receive
from workers.processes import AttemptProcess, tagged
from workers.trial import report
from workers.watchdog import Watchdog

FLEET = "workers.fleet.driver"
"""The module that runs a trial on several hosts."""
_GANG = "workers.gang.launcher"
_TRIAL = "workers.trial"
_TICK_SECONDS = 0.1
_RENEW_SECONDS = 1.0
"""The lease is renewed, and the record read for requests of users, at least this often."""
_REAP_SECONDS = 10.0
"""A killed process is gone within this, unless the kernel itself holds it."""
_log = logging.getLogger("workers.supervisor")


def run(text: str) -> None:
    """RQ's entry point: run the attempt `JOB/TRIAL/NUMBER` if it is still to be had."""
    drain = _SignalFlag(signal.SIGTERM)
    attempt = Attempt(Settings(), AttemptRef.parse(text), os.environ["RQ_WORKER_ID"])
    job = attempt.claim()
    if job is None:
        return
    try:
        _run(attempt, job, drain)
    finally:
        _remove_if_deleted(attempt)


def _run(attempt: Attempt, job: Job, drain: _SignalFlag) -> None:
    """Train, and record how it ended if the trial is still this attempt's."""
    settings = attempt.settings
    try:
        outcome = _train(attempt, job, drain)
    except RedisError as error:
        outcome = Outcome.of_error(error)
    except OSError as error:
        kind = StorageFull if error.errno in FULL_DISK else MergeNetError
        outcome = Outcome.of_error(kind(f"the training process could not be started: {error}"))
    if attempt.over:
        _log.warning("%s lost its lease: its processes are ended and nothing is written", attempt.tag)
        return
    after = attempt.write(lambda job: _conclude(job, attempt.ref, outcome, redis_now(attempt.store.redis)))
    if after is None:
        return
    # the record stands; the reconciler sends what could not be sent now, and a job may be deleted as soon as it is done
    with contextlib.suppress(RedisError, NotFound):
        rq_queue.enqueue(settings.redis(decode=False), after)
        if after.state == "succeeded":
            drop_trials(attempt.store.spec(job.id), settings.job_folder(job.id), after)
            attempt.store.settled(job.id)


def _remove_if_deleted(attempt: Attempt) -> None:
    """Remove what was written after the job was deleted: a failed job can be, while its other trials still end."""
    with contextlib.suppress(RedisError):
        if attempt.store.deleted(attempt.ref.job_id):
            attempt.store.forget_reports(attempt.ref.job_id)
            shutil.rmtree(attempt.settings.job_folder(attempt.ref.job_id).path, ignore_errors=True)


def _train(attempt: Attempt, job: Job, drain: _SignalFlag) -> Outcome:
    """Run the training process to its end, or end it with everything it started."""
    trial = job.trial(attempt.ref.trial_id)
    trees.kill(tagged(f"{attempt.ref.trial_path}/"))
    _sweep(attempt.settings, job, trial)
    if trial.kind == "finalize":
        return _supervise(attempt, [_TRIAL], drain, None)
    if job.nodes > 1:
        # before the driver has started, so that the order of jobs does not depend on which starts faster
        QueueEntry(job, attempt.ref).join(attempt.store.redis)
        return _supervise(attempt, [FLEET], drain, None)
    if job.device == "cpu" and not capacity.has_cpu_slots(capacity.devices(attempt.settings)):
        # a host lends its GPUs, and this trial needs none
        slots = ",".join(map(str, range(job.devices)))
        return _supervise(attempt, [_GANG, "--devices", slots] if job.devices > 1 else [_TRIAL], drain, None)
    lease = wait_for_devices(attempt, job.devices, lambda: drain.up)
    if lease is None:
        return Outcome.interrupted("stopped while it waited for devices")
    try:
        several = len(lease.devices) > 1
        program = [_GANG, "--devices", ",".join(lease.devices)] if several else [_TRIAL]
        return _supervise(attempt, program, drain, lease)
    finally:
        release(attempt, lease)


def _supervise(attempt: Attempt, program: list[str], drain: _SignalFlag, lease: Lease | None) -> Outcome:
    """Run `program`, a module and its options, until it has ended with everything it started."""
    module, *options = program
    reader, writer = os.pipe()
    kills_before = memory.kills()
    watchdog = None if module == FLEET else Watchdog(attempt.settings, launcher=module == _GANG)
    try:
        child = processes.start(
            functools.partial(report, writer, attempt.ref) if prewarm.is_warm() and module == _TRIAL else None,
            python_command(module, str(attempt.ref), *options),
            environment=_environment(attempt, lease, watchdog) | {OUTCOME_FD: str(writer)},
            log=attempt.settings.job_folder(attempt.ref.job_id).log(attempt.ref.trial_id, attempt.ref.number),
            fd=writer,
        )
    finally:
        os.close(writer)
    try:
        stopped = _watch(attempt, child, drain, lease, watchdog)
    finally:
        trees.kill([*child.tree(), *tagged(attempt.tag)])
        status = child.wait(_REAP_SECONDS)
    memory_ran_out = memory.kills() > kills_before
    reported = receive(reader)
    os.close(reader)
    if watchdog is not None:
        watchdog.close()
        if reported is None and watchdog.fault is not None:
            return Outcome.of_error(TrainingHung(watchdog.fault))
    return reported or Outcome.unreported(
        "the training process", status, stopped=stopped, memory_ran_out=memory_ran_out
    )


def _environment(attempt: Attempt, lease: Lease | None, watchdog: Watchdog | None) -> dict[str, str]:
    settings, count = attempt.settings, len(lease.devices) if lease else 1
    # a launcher divides the threads among its processes
    threads = count * capacity.threads(settings, capacity.devices(settings), count)
    own = {processes.TAG: attempt.tag, "OMP_NUM_THREADS": str(threads)} | gpu_environment(lease)
    if watchdog is not None:
        own |= {ADDRESS: watchdog.address, SILENCE: str(settings.silence_seconds)}
    return own


def _watch(
    attempt: Attempt, child: AttemptProcess, drain: _SignalFlag, lease: Lease | None, watchdog: Watchdog | None
) -> bool:
    """Wait until the child has ended or hangs, or the lease is over; return whether the child was asked to stop."""
    settings = attempt.settings
    renew_seconds = min(_RENEW_SECONDS, settings.lease_seconds / 5)
    renewed_at = time.monotonic()
    stop_at: float | None = None
    request: str | None = None
    # the newest checkpoint when the last request for one was passed on; None if no request stands
    handled: tuple[Checkpoint | None] | None = None
    while child.poll() is None and not attempt.over:
        now = time.monotonic()
        if now >= renewed_at + renew_seconds:
            # one call that hangs fits in what `over` leaves of the lease, two do not
            renewed_at = now
            job = attempt.read() if attempt.renew(lease) else None
            if job is not None:
                request = job.request
                asked = (job.trial(attempt.ref.trial_id).checkpoint,) if request == "checkpoint" else None
                # another newest checkpoint under the same request: the request was met and made again since
                if asked is not None and asked != handled:
                    child.send(signal.SIGUSR1)
                handled = asked
        if stop_at is None and (drain.up or request in ("cancel", "pause")):
            child.send(signal.SIGTERM)
            stop_at = now
        if stop_at is not None and now > stop_at + settings.grace_seconds:
            break
        if watchdog is not None and watchdog.check() is not None:
            break
        child.wait(_TICK_SECONDS)
    return stop_at is not None


def _conclude(job: Job, attempt: AttemptRef, outcome: Outcome, at: datetime) -> Job:
    if outcome.ended == "finished":
        return state_machine.commit(job, attempt, result=outcome.result, artifact=outcome.artifact)
    if outcome.ended == "interrupted":
        return state_machine.hand_back(job, attempt, outcome.message)
    return state_machine.fail(
        job, attempt, code=outcome.code, reason=outcome.message, retryable=outcome.retryable, at=at
    )


def _sweep(settings: Settings, job: Job, trial: Trial) -> None:
    """Remove what earlier attempts left half-written."""
    folder = settings.job_folder(job.id)
    published_folder.sweep(folder.trial(trial.id))
    published_folder.sweep(folder.trial(trial.id) / "checkpoints")
    if trial.kind != "arm":  # these publish into the job's own folder, and run while no other trial of the job does
        published_folder.sweep(folder.path)


class _SignalFlag:
    """Is up once the process has received a signal."""

    def __init__(self, number: int) -> None:
        self.up = False
        signal.signal(number, self._raise)

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        self.up = True
