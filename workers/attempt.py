"""An attempt's hold on its trial: the lease, kept on this process's own clock too, and the record it may write to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from mergenet_core.errors import NotFound, StaleAttempt
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import TERMINAL, Job
from mergenet_core.settings import Settings
from mergenet_core.store import attempt_leases, device_leases
from mergenet_core.store.device_leases import Lease
from mergenet_core.store.jobs import Store
from workers import processes

_PAUSE_SECONDS = 0.1
_log = logging.getLogger("workers.attempt")


class Attempt:
    """The attempt that this process runs: its lease, and the record it may write to."""

    def __init__(self, settings: Settings, ref: AttemptRef, worker: str) -> None:
        self.settings, self.ref, self.worker = settings, ref, worker
        # a call that hangs must fail while there is lease left to do something about it
        self.store = Store(settings.redis(timeout_seconds=settings.lease_seconds / 5, retries=0))
        self._held_since = time.monotonic()
        self.lost = False

    @property
    def mark(self) -> str:
        """What its processes carry in their environment."""
        return processes.mark(self.ref, self.worker)

    @property
    def over(self) -> bool:
        """Whether the lease is lost, or may be before a call that hangs returns."""
        return self.lost or time.monotonic() > self._held_since + 0.8 * self.settings.lease_seconds

    def claim(self) -> Job | None:
        """Take the trial; None where it is not to be had."""
        self._held_since = time.monotonic()

        def take(job: Job) -> Job:
            trial = job.trial(self.ref.trial_id)
            if (trial.state, trial.attempt, trial.worker) == ("starting", self.ref.number, self.worker):
                return job  # taken just now, only the answer was lost
            return state_machine.claim(job, self.ref, self.worker)

        try:
            return self.store.update(self.ref.job_id, take, lease_seconds=self.settings.lease_seconds)
        except (StaleAttempt, NotFound, KeyError) as refusal:
            _log.info("not claimed: %s", refusal)
            return None

    def renew(self, borrowed: Lease | None = None) -> bool:
        """Prolong the lease, and that of its devices; false while Redis is away, and when either is gone."""
        asked_at, seconds = time.monotonic(), self.settings.lease_seconds
        try:
            held = attempt_leases.renew(self.store.redis, self.ref, seconds)
            if held and borrowed is not None:
                held = device_leases.renew(self.store.redis, borrowed, seconds)
        except RedisError as error:
            _log.warning("the lease could not be renewed: %s", error)
            return False
        self.lost = not held
        self._held_since = asked_at
        return held

    def look(self) -> Job | None:
        """The record, None while Redis is away; notes when the trial is no longer this attempt's."""
        try:
            job = self.store.get(self.ref.job_id)
            self._mine(job)
            return job
        except RedisError:
            return None
        except (StaleAttempt, NotFound) as refusal:
            _log.warning("%s", refusal)
            self.lost = True
            return None

    def write(self, change: Callable[[Job], Job]) -> Job | None:
        """Apply a transition, again and again while Redis is away and the lease lasts; None where it was refused."""

        def checked(job: Job) -> Job:
            self._mine(job)
            return change(job)

        while not self.over:
            try:
                return self.store.update(self.ref.job_id, checked)
            except RedisError as error:
                _log.warning("not written yet: %s", error)
                time.sleep(_PAUSE_SECONDS)
                self.renew()
            except (StaleAttempt, NotFound) as refusal:
                _log.warning("refused: %s", refusal)
                return None
        _log.warning("the lease of %s is over: nothing is written", self.mark)
        return None

    def _mine(self, job: Job) -> None:
        trial = job.trial(self.ref.trial_id)
        # the worker's name too: a Redis that lost its last seconds may give the same number out again
        if job.state in TERMINAL or (trial.attempt, trial.worker) != (self.ref.number, self.worker):
            raise StaleAttempt(f"{self.mark} is refused: the trial is {trial.state} at attempt {trial.attempt}")
