"""The training process of one attempt: forked by the supervisor, or `python -m workers.trial JOB/TRIAL/NUMBER`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass

from redis.exceptions import RedisError

from mergenet_core.errors import MergeNetError, StaleAttempt
from mergenet_core.planning.resolve_spec import resolve_spec
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job, Trial
from mergenet_core.settings import Settings
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder
from mergenet_core.store.jobs import Store
from mergenet_core.training.protocols import Control, Interrupted, Reporter
from workers.gang.member import Member
from workers.logs import configure_logging
from workers.outcome import OUTCOME_FD, Outcome, is_panic, send
from workers.reporting import RedisReporter, SignalControl


@dataclass(frozen=True)
class _Work:
    """What the attempt has to do."""

    settings: Settings
    attempt: AttemptRef
    job: Job
    trial: Trial
    spec: JobSpec
    """The spec that this trial runs."""

    @property
    def folder(self) -> JobFolder:
        """The job's folder."""
        return self.settings.job_folder(self.job.id)


def main(attempt: AttemptRef, member: Member) -> Outcome:
    """Run the attempt; every error becomes an outcome with a code and a message.

    Of several processes that train together, the one of world rank 0 reports for all.
    """
    control = SignalControl()
    settings = Settings()
    reporter = None
    try:
        work = _read_work(settings, attempt)
        if member.world_rank == 0:
            quick = settings.redis(timeout_seconds=settings.lease_seconds / 5, retries=0)
            reporter = RedisReporter(quick, attempt, work.folder.trial(work.trial.id))
        if work.trial.kind == "finalize":
            assert reporter is not None, "one process does it"
            return _finalize(work, reporter)
        return _train(work, *member.watch(reporter, control))
    except MergeNetError as error:
        logging.error("%s: %s", error.code, error.message)
        return Outcome.of_error(error)
    except RedisError as error:
        return Outcome.of_error(error)
    except Exception as error:
        with contextlib.suppress(OSError):  # the log may be on the very disk that is full
            traceback.print_exc()
        where = f"see the log of attempt {attempt.number}"
        return Outcome.of_exception(error, where, None if member.alone else member.world_rank)
    except BaseException as error:
        if not is_panic(error):
            raise
        traceback.print_exc()
        return Outcome.of_panic(error, f"see the log of attempt {attempt.number}")
    finally:
        if reporter is not None:
            reporter.close(settings.lease_seconds)


def report(descriptor: int, attempt: AttemptRef) -> None:
    """Run the attempt and send its outcome: all that the training process does."""
    configure_logging()
    send(descriptor, main(attempt, Member()))


def _read_work(settings: Settings, attempt: AttemptRef) -> _Work:
    store = Store(settings.redis())
    job = store.get(attempt.job_id)
    trial = job.trial(attempt.trial_id)
    return _Work(settings, attempt, job, trial, resolve_spec(job, store.spec(job.id), trial))


def _finalize(work: _Work, reporter: RedisReporter) -> Outcome:
    # it writes nothing but one folder that is whole or absent, so SIGTERM can simply end it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from mergenet_core.training.finalize import finalize

    reporter.begin()
    return Outcome.finished(
        artifact=finalize(work.spec, work.job, work.folder, work.settings.roots, work.attempt.number)
    )


def _train(work: _Work, reporter: Reporter, control: Control) -> Outcome:
    import torch  # not at the top: the supervisor imports this module and never torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from mergenet_core.training.trial import AttemptContext, run_trial

    try:
        attempt = AttemptContext(work.attempt.number, reporter, control)
        result = run_trial(work.spec, work.trial, work.folder, work.settings.roots, attempt)
    except (Interrupted, StaleAttempt) as stop:
        return Outcome.interrupted(str(stop))
    return Outcome.finished(result=result)


if __name__ == "__main__":
    report(int(os.environ[OUTCOME_FD]), AttemptRef.parse(sys.argv[1]))
