"""An attempt's hold on its trial: the lease, measured on this process's own clock too, and the right to write."""

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
from workers.processes import attempt_tag

_PAUSE_SECONDS = 0.1
_log = logging.getLogger("workers.attempt")


class Attempt:
    """The attempt that this process runs."""

    def __init__(self, settings: Settings, ref: AttemptRef, worker: str) -> None:
        self.settings, self.ref, self.worker = settings, ref, worker
        # a call that hangs must fail while there is lease left to do something about it
        self.store = Store(settings.redis(timeout_seconds=settings.lease_seconds / 5, retries=0))
        self._renewed_at = time.monotonic()
        self.lost = False
        """The lease or the trial is certainly someone else's by now."""

    @property
    def tag(self) -> str:
        """What its processes carry in their environment."""
        return attempt_tag(self.ref, self.worker)

    @property
    def over(self) -> bool:
        """Whether the lease is lost, or might run out during one more call to Redis that hangs."""
        return self.lost or time.monotonic() > self._renewed_at + 0.8 * self.settings.lease_seconds

    def claim(self) -> Job | None:
        """Take the trial; return its job, or None if the trial is not to be had."""
        self._renewed_at = time.monotonic()

        def take(job: Job) -> Job:
            trial = job.trial(self.ref.trial_id)
            if (trial.state, trial.attempt, trial.worker) == ("starting", self.ref.number, self.worker):
                return job  # an earlier try was written, only Redis's reply was lost
            return state_machine.claim(job, self.ref, self.worker)

        try:
            return self.store.update(self.ref.job_id, take, lease_seconds=self.settings.lease_seconds)
        except (StaleAttempt, NotFound, KeyError) as refusal:
            _log.info("not claimed: %s", refusal)
            return None

    def renew(self, devices: Lease | None = None) -> bool:
        """Renew the lease, and that of its devices; false while Redis is away, and when either is lost."""
        asked_at, seconds = time.monotonic(), self.settings.lease_seconds
        try:
            held = attempt_leases.renew(self.store.redis, self.ref, seconds)
            if held and devices is not None:
                held = device_leases.renew(self.store.redis, devices, seconds)
        except RedisError as error:
            _log.warning("the lease could not be renewed: %s", error)
            return False
        self.lost = not held
        self._renewed_at = asked_at
        return held

    def read(self) -> Job | None:
        """Read the record and note whether the trial is still this attempt's; None if not, or while Redis is away."""
        try:
            job = self.store.get(self.ref.job_id)
            self._check(job)
            return job
        except RedisError:
            return None
        except (StaleAttempt, NotFound) as refusal:
            _log.warning("%s", refusal)
            self.lost = True
            return None

    def write(self, change: Callable[[Job], Job]) -> Job | None:
        """Change the record, trying again while Redis is away and the lease lasts; None if the change was refused."""

        def checked(job: Job) -> Job:
            self._check(job)
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
        _log.warning("the lease of %s is over: nothing is written", self.tag)
        return None

    def _check(self, job: Job) -> None:
        trial = job.trial(self.ref.trial_id)
        # the worker's name too: a Redis that lost its last seconds may give the same number out again
        if job.state in TERMINAL or (trial.attempt, trial.worker) != (self.ref.number, self.worker):
            raise StaleAttempt(f"{self.tag} is refused: the trial is {trial.state} at attempt {trial.attempt}")
