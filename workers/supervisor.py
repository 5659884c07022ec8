"""One attempt at one trial: claim it, run its training process, keep the lease, write down how it ended.

This is the function that RQ's work-horse runs. It never imports torch: the training is a process tree of its own, so
that it can be ended whatever it does. Nothing is written after the lease has run out, and a newer attempt's record
refuses what an older one writes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shutil
import signal
import time
from types import FrameType

from redis.exceptions import RedisError

from mergenet_core.errors import NotFound, WorkerLost
from mergenet_core.processes import trees
from mergenet_core.processes.command import python_command
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Checkpoint, Job, Trial
from mergenet_core.settings import Settings
from mergenet_core.storage import published_folder
from mergenet_core.store import rq_queue
from mergenet_core.store.device_leases import Lease
from mergenet_core.store.fleet_queue import QueueEntry
from workers import processes
from workers.attempt import Attempt
from workers.device_lease import borrow, give_back, visible
from workers.host import capacity, prewarm
from workers.outcome import Outcome, receive
from workers.retention import drop_trials
from workers.trial import OUTCOME_FD, report

FLEET = "workers.fleet.driver"
"""What runs a trial on several hosts."""
_TRIAL = "workers.trial"
_TICK_SECONDS = 0.1
_BEAT_SECONDS = 1.0
"""How often the lease is renewed and the record read at least, for what a user asks."""
_REAP_SECONDS = 10.0
"""A killed process is gone within this, unless the kernel itself holds it."""
_log = logging.getLogger("workers.supervisor")


def run(attempt: str) -> None:
    """RQ's entry point: run one attempt at a trial (`JOB/TRIAL/NUMBER`), if it is still to be had."""
    drain = _Flag(signal.SIGTERM)
    settings = Settings()
    mine = Attempt(settings, AttemptRef.parse(attempt), os.environ["RQ_WORKER_ID"])
    job = mine.claim()
    if job is None:
        return
    try:
        _attempt(mine, job, drain)
    finally:
        _bury(mine)


def _attempt(mine: Attempt, job: Job, drain: _Flag) -> None:
    """Train, and write down how it ended where it is still this attempt's to say."""
    settings, trial = mine.settings, job.trial(mine.ref.trial_id)
    try:
        outcome = _train(mine, job, trial, drain)
    except RedisError as error:
        message = f"Redis could not be reached when the attempt began: {error}"
        outcome = Outcome(ended="failed", code="unavailable", message=message, retryable=True)
    except OSError as error:
        code = "storage-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
        outcome = Outcome(ended="failed", code=code, message=f"the training process could not be started: {error}")
    if mine.over:
        _log.warning("%s lost its lease: its processes are ended and nothing is written", mine.mark)
        return
    after = mine.write(lambda job: _conclude(job, mine.ref, outcome))
    if after is None:
        return
    # the record stands; the reconciler sends what could not be sent now, and a job may be deleted as soon as it is done
    with contextlib.suppress(RedisError, NotFound):
        rq_queue.enqueue(settings.redis(decode=False), after)
        if after.state == "succeeded":
            drop_trials(mine.store.spec(mine.ref.job_id), settings.job_folder(mine.ref.job_id), after)


def _bury(mine: Attempt) -> None:
    """Remove what was written after the job was deleted: a failed job can be, while its other trials still end."""
    with contextlib.suppress(RedisError):
        if mine.store.deleted(mine.ref.job_id):
            shutil.rmtree(mine.settings.job_folder(mine.ref.job_id).path, ignore_errors=True)


def _train(mine: Attempt, job: Job, trial: Trial, drain: _Flag) -> Outcome:
    """Run the training process to its end, or end it with everything it started."""
    settings = mine.settings
    trees.kill(processes.marked(f"{mine.ref.trial_path}/"))
    _sweep(settings, job, trial)
    several = job.nodes > 1 and trial.kind != "finalize"
    if several:
        # before the driver has started, so that the order of jobs does not depend on which starts faster
        QueueEntry(job, mine.ref).join(mine.store.redis)
    count = 0 if several or trial.kind == "finalize" else job.devices
    lease = borrow(mine, count, lambda: drain.up) if count else None
    if count and lease is None:
        return Outcome(ended="interrupted", message="stopped while it waited for devices")
    try:
        return _train_on(mine, [FLEET] if several else _program(lease), drain, lease)
    finally:
        if lease is not None:
            give_back(mine, lease)


def _program(lease: Lease | None) -> list[str]:
    """What trains on this host's devices: a module and its options."""
    if lease is not None and len(lease.devices) > 1:
        return ["workers.gang.launcher", "--devices", ",".join(lease.devices)]
    return [_TRIAL]


def _train_on(mine: Attempt, program: list[str], drain: _Flag, lease: Lease | None) -> Outcome:
    module, *options = program
    reader, writer = os.pipe()
    kills_before = processes.memory_kills()
    taken = len(lease.devices) if lease else 1
    threads = taken * capacity.threads(
        mine.settings, capacity.devices(mine.settings), taken
    )  # a launcher shares them out
    environment = {processes.MARK: mine.mark, OUTCOME_FD: str(writer), "OMP_NUM_THREADS": str(threads)}
    try:
        child = processes.start(
            functools.partial(report, writer, mine.ref) if prewarm.is_warm() and module == _TRIAL else None,
            python_command(module, str(mine.ref), *options),
            environment=environment | visible(lease),
            log=mine.settings.job_folder(mine.ref.job_id).log(mine.ref.trial_id, mine.ref.number),
            fd=writer,
        )
    finally:
        os.close(writer)
    try:
        stopped = _watch(mine, child, drain, lease)
    finally:
        trees.kill([*child.tree(), *processes.marked(mine.mark)])
        status = child.wait(_REAP_SECONDS)
    memory_ran_out = processes.memory_kills() > kills_before
    return receive(reader) or _silent(status, stopped=stopped, memory_ran_out=memory_ran_out)


def _watch(mine: Attempt, child: processes.Child, drain: _Flag, lease: Lease | None) -> bool:
    """Stay until the child has ended, or the lease has; returns whether it was asked to stop."""
    settings = mine.settings
    beat_seconds = min(_BEAT_SECONDS, settings.lease_seconds / 5)
    beat_at = time.monotonic()
    stop_at: float | None = None
    request: str | None = None
    wished: tuple[Checkpoint | None] | None = None
    while child.poll() is None and not mine.over:
        moment = time.monotonic()
        if moment >= beat_at + beat_seconds:
            # one call that hangs fits in what `over` leaves of the lease, two do not
            beat_at = moment
            job = mine.look() if mine.renew(lease) else None
            if job is not None:
                request = job.request
                # a checkpoint asked for again within a beat, after the first one came, is a wish of its own
                wish = (job.trial(mine.ref.trial_id).checkpoint,) if request == "checkpoint" else None
                if wish is not None and wish != wished:
                    child.send(signal.SIGUSR1)
                wished = wish
        if stop_at is None and (drain.up or request in ("cancel", "pause")):
            child.send(signal.SIGTERM)
            stop_at = moment
        if stop_at is not None and moment > stop_at + settings.grace_seconds:
            break
        child.wait(_TICK_SECONDS)
    return stop_at is not None


def _conclude(job: Job, attempt: AttemptRef, outcome: Outcome) -> Job:
    if outcome.ended == "finished":
        return state_machine.commit(job, attempt, result=outcome.result, artifact=outcome.artifact)
    if outcome.ended == "interrupted":
        return state_machine.hand_back(job, attempt, outcome.message)
    return state_machine.fail(job, attempt, code=outcome.code, reason=outcome.message, retryable=outcome.retryable)


def _silent(status: int | None, *, stopped: bool, memory_ran_out: bool) -> Outcome:
    """What to make of a training process that ended without telling an outcome."""
    if stopped:
        return Outcome(ended="interrupted", message="stopped on request; it goes on from its newest checkpoint")
    if status == -signal.SIGKILL and memory_ran_out:
        message = "the system ran out of memory and killed the training; take a smaller batch_size or model"
        return Outcome(ended="failed", code="out-of-memory", message=message)
    by_signal = status is not None and status < 0
    how = f"by signal {signal.Signals(abs(status or 0)).name}" if by_signal else f"with exit status {status}"
    message = f"the training process ended {how} and left no word; its log may say more"
    return Outcome(ended="failed", code=WorkerLost.code, message=message, retryable=True)


def _sweep(settings: Settings, job: Job, trial: Trial) -> None:
    """Remove what earlier attempts left half-made."""
    folder = settings.job_folder(job.id)
    published_folder.sweep(folder.trial(trial.id))
    published_folder.sweep(folder.trial(trial.id) / "checkpoints")
    if trial.kind != "arm":  # they publish into the job's own folder, and nothing else of the job runs beside them
        published_folder.sweep(folder.path)


class _Flag:
    """Goes up when the process gets a signal."""

    def __init__(self, number: int) -> None:
        self.up = False
        signal.signal(number, self._raise)

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        self.up = True
