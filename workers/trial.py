"""The training process of one attempt: forked by the supervisor, or `python -m workers.trial JOB/TRIAL/NUMBER`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import traceback

from redis.exceptions import RedisError

from mergenet_core.errors import MergeNetError, RankLost, StaleAttempt
from mergenet_core.planning.resolve_spec import resolve_spec
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job, Trial
from mergenet_core.settings import Settings
from mergenet_core.spec.job import JobSpec
from mergenet_core.store.jobs import Store
from mergenet_core.training.protocols import Control, Reporter
from workers.gang.member import Member
from workers.outcome import Outcome, failed, send
from workers.reporting import RedisReporter, SignalControl

OUTCOME_FD = "MERGENET_OUTCOME_FD"
"""Environment variable with the descriptor that the outcome is written to."""
_HARDWARE = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT})


def main(attempt: AttemptRef, member: Member | None = None) -> Outcome:
    """Run the attempt; whatever goes wrong becomes an outcome with a code and a sentence.

    With `member`, this process is one of several that train together: the first reports for all.
    """
    control = SignalControl()
    settings = Settings()
    reporter = None
    try:
        store = Store(settings.redis())
        job = store.get(attempt.job_id)
        trial = job.trial(attempt.trial_id)
        spec = resolve_spec(job, store.spec(job.id), trial)
        if member is None or member.world_rank == 0:
            quick = settings.redis(timeout_seconds=settings.lease_seconds / 5, retries=0)
            folder = settings.job_folder(job.id).trial(trial.id)
            reporter = RedisReporter(quick, attempt, folder)
        return _run(settings, job, spec, trial, attempt.number, reporter, control, member)
    except MergeNetError as error:
        logging.error("%s: %s", error.code, error.message)
        return failed(error.code, error.message, retryable=error.retryable)
    except RedisError as error:
        return failed("unavailable", f"Redis could not be reached when the attempt began: {error}", retryable=True)
    except Exception as error:
        with contextlib.suppress(OSError):  # the log may lie on the very disk that is full
            traceback.print_exc()
        return failure(error, member, f"see the log of attempt {attempt.number}")
    finally:
        if reporter is not None:
            reporter.close(settings.lease_seconds)


def _run(
    settings: Settings,
    job: Job,
    spec: JobSpec,
    trial: Trial,
    attempt: int,
    reporter: RedisReporter | None,
    control: SignalControl,
    member: Member | None,
) -> Outcome:
    folder = settings.job_folder(job.id)
    if trial.kind == "finalize":
        assert reporter is not None
        # it writes nothing but one folder that is whole or absent, so it can simply end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from mergenet_core.training.finalize import finalize

        reporter.begin()
        return Outcome(ended="finished", artifact=finalize(spec, job, folder, settings.roots, attempt))
    import torch  # not at the top: the supervisor imports this module and never torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from mergenet_core.training.trial import Interrupted, run_trial

    seams: tuple[Reporter, Control]
    if member is not None:
        seams = member.watch(reporter, control)
    else:
        assert reporter is not None
        seams = reporter, control
    try:
        result = run_trial(spec, trial, folder, settings.roots, attempt=attempt, reporter=seams[0], control=seams[1])
    except (Interrupted, StaleAttempt) as stop:
        return Outcome(ended="interrupted", message=str(stop))
    return Outcome(ended="finished", result=result)


def _between_processes(error: Exception) -> bool:
    """Whether a collective failed: another process is gone or hangs, and that one's word is the better one."""
    by_type = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return by_type or (isinstance(error, RuntimeError) and ("/gloo/" in str(error) or "NCCL" in str(error)))


def failure(error: Exception, member: Member | None, where: str) -> Outcome:
    """What to make of an exception that is none of the service's own."""
    last = traceback.format_exception_only(error)[-1].strip()
    if member is not None and _between_processes(error):
        return failed(RankLost.code, f"rank {member.world_rank} no longer reaches the others: {last}", retryable=True)
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        advice = "take a smaller batch_size, a shorter max_length or a smaller model"
        return failed("out-of-memory", f"out of memory: {last}; {advice} ({where})")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return failed("storage-full", f"no space left on the disk: {last}; free some, then resume ({where})")
    # a broken device or disk may be another one next time; a bug is the same bug
    hardware = type(error).__name__ == "AcceleratorError" or number in _HARDWARE
    return failed("internal", f"{last} ({where})", retryable=hardware)


def report(descriptor: int, attempt: AttemptRef) -> None:
    """Run the attempt and send its outcome: all that the training process does."""
    log_by_lines()
    send(descriptor, main(attempt))


def log_by_lines() -> None:
    """Set up what this process prints."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log is read while it is written


if __name__ == "__main__":
    report(int(os.environ[OUTCOME_FD]), AttemptRef.parse(sys.argv[1]))
