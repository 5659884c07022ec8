"""Drives a trial on several hosts: `python -m workers.fleet.driver JOB/TRIAL/NUMBER`, in place of a training process.

It waits in line, asks Ray for devices of all hosts or none, starts the launcher on each, and hears them out. When this
process ends, however it does, Ray ends what it started and frees the devices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from redis.exceptions import RedisError

from mergenet_core.errors import MergeNetError, NotFound, StaleAttempt
from mergenet_core.processes.linux import die_with
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.settings import Settings
from mergenet_core.spec.job import ResourcesSpec
from mergenet_core.store import events, rq_queue
from mergenet_core.store.fleet_queue import QueueEntry
from mergenet_core.store.jobs import Store
from workers import processes
from workers.outcome import Outcome, failed, send
from workers.trial import OUTCOME_FD

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from workers.fleet import host_launchers
    from workers.fleet.ray_cluster import Want

_PAUSE_SECONDS = 0.3
_PLACE_SECONDS = 1
"""Free devices are placed within this; Ray wants whole seconds."""
_YIELD_SECONDS = 30.0
"""So long a trial that the fleet is too small for keeps other trials waiting."""
_CLEAN_SECONDS = 10.0
_log = logging.getLogger("workers.fleet.driver")


def main(arguments: Sequence[str], module: str = "workers.gang.launcher") -> NoReturn:
    """Run the attempt, with `module` on every host, and send its outcome to the supervisor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, processes.HELD)  # every thread's: they are asked for, never delivered
    die_with(os.getppid())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ["RAY_AUTH_MODE"] = "token"  # read by Ray when it is imported
    driver = _Driver(Settings(), AttemptRef.parse(arguments[0]))
    try:
        outcome = driver.run(module)
    except MergeNetError as error:
        outcome = failed(error.code, error.message, retryable=error.retryable)
    except RedisError as error:
        outcome = failed("unavailable", f"Redis could not be reached: {error}", retryable=True)
    if outcome.ended == "failed":
        _log.error("%s: %s", outcome.code, outcome.message)
    send(int(os.environ[OUTCOME_FD]), outcome)
    # a head that is gone must not keep the attempt from ending: with this process Ray frees the devices anyway
    cleaner = threading.Thread(target=driver.clean, daemon=True)
    cleaner.start()
    cleaner.join(_CLEAN_SECONDS)
    os._exit(0)


class _Driver:
    def __init__(self, settings: Settings, attempt: AttemptRef) -> None:
        self._settings, self._attempt = settings, attempt
        self._store = Store(settings.redis())
        self._job: Job = self._store.get(attempt.job_id)
        self._said: str | None = None
        self._stopped = False
        self._group: PlacementGroup | None = None

    def run(self, module: str) -> Outcome:
        """The attempt, from its place in the line to its end."""
        resources = self._store.spec(self._job.id).resources
        from workers.fleet import host_launchers, ray_cluster

        entry = QueueEntry(self._job, self._attempt)
        try:
            want = self._place(entry, resources)
        finally:
            with contextlib.suppress(RedisError):
                entry.leave(self._store.redis)
        if want is None or self._group is None:
            return Outcome(ended="interrupted", message=self._said or "stopped on request before the training began")
        self._say(None)
        hosts = ray_cluster.hosts(self._group, want, self._attempt, os.environ[processes.MARK])
        launchers = host_launchers.Launchers(hosts, self._stop)
        try:
            _log.info("training on %s", launchers.start(module, want.devices))
            return self._attend(launchers)
        except host_launchers.Stopped:
            return Outcome(ended="interrupted", message="stopped on request before the training began")
        finally:
            launchers.end()

    def clean(self) -> None:
        """Free the devices and leave the fleet."""
        if self._group is not None:
            from workers.fleet import ray_cluster

            ray_cluster.give_back(self._group)

    def _attend(self, launchers: host_launchers.Launchers) -> Outcome:
        while True:
            while (heard := signal.sigtimedwait(processes.HELD, 0)) is not None:
                launchers.send(heard.si_signo)
            outcome = launchers.hear(self._settings.silence_seconds)
            if outcome is not None:
                return outcome

    def _place(self, entry: QueueEntry, resources: ResourcesSpec) -> Want | None:
        """Wait for the devices; None where the trial was asked to stop, or gives way to others."""
        from workers.fleet import ray_cluster

        address = self._settings.ray_address or ""
        while (unreachable := ray_cluster.connect(address)) is not None:
            self._say(unreachable)
            if self._stop(_PAUSE_SECONDS):
                return None
        want = ray_cluster.want(resources.nodes, resources.devices, resources.device)
        small_since: float | None = None
        while not self._stop(_PAUSE_SECONDS):
            total, free = ray_cluster.census(want)
            if total < want.nodes:
                self._withdraw(entry)
                self._say(f"needs {want}, the fleet has {total} of them")
                small_since = small_since or time.monotonic()
                if time.monotonic() > small_since + _YIELD_SECONDS and self._others_wait():
                    return None
                continue
            small_since = None
            if (ahead := self._ahead(entry)) > 0:
                self._withdraw(None)
                self._say(
                    f"needs {want}, {free} {'is' if free == 1 else 'are'} free; position {ahead + 1} in the queue"
                )
                continue
            self._group = self._group or ray_cluster.ask(want)
            if self._group.wait(_PLACE_SECONDS):
                return want
            self._say(f"needs {want}, {free} {'is' if free == 1 else 'are'} free; position 1 in the queue")
        self._said = None
        return None

    def _withdraw(self, entry: QueueEntry | None) -> None:
        """Ask Ray for nothing now, and with `entry` let others go first too."""
        if self._group is not None:
            from workers.fleet import ray_cluster

            ray_cluster.give_back(self._group)
            self._group = None
        if entry is not None:
            with contextlib.suppress(RedisError):
                entry.leave(self._store.redis)

    def _ahead(self, entry: QueueEntry) -> int:
        try:
            return entry.join(self._store.redis)
        except RedisError as error:
            _log.warning("the line cannot be seen: %s", error)
            return 1

    def _others_wait(self) -> bool:
        with contextlib.suppress(RedisError):
            return rq_queue.waiting(self._settings.redis(decode=False), rq_queue.FLEET) > 0
        return False

    def _stop(self, seconds: float = 0) -> bool:
        """Whether the trial was asked to stop, within that time at most."""
        heard = signal.sigtimedwait({signal.SIGTERM}, seconds)
        self._stopped = self._stopped or heard is not None
        return self._stopped

    def _say(self, why: str | None) -> None:
        """Write down what the trial waits for, once for each reason. Raises: `StaleAttempt`."""
        if why == self._said:
            return
        try:
            self._store.update(self._job.id, lambda job: state_machine.waits(job, self._attempt, why))
            if why is not None:
                events.add_event(self._store.redis, self._job.id, "trial.waiting", why, attempt=self._attempt)
                _log.info("waits: %s", why)
        except NotFound as error:
            raise StaleAttempt(error.message) from None
        except RedisError as error:
            _log.warning("not said yet: %s", error)
            return
        self._said = why


if __name__ == "__main__":
    main(sys.argv[1:])
