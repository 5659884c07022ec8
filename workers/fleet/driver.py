"""Drives a trial on several hosts: `python -m workers.fleet.driver JOB/TRIAL/NUMBER`, in place of a training process.

It waits in the fleet's queue, asks Ray for the devices of all hosts or none, starts the launcher on each host, and
collects their outcomes. When this process ends, however it does, Ray ends what it started and frees the devices.
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
from workers.logs import configure_logging
from workers.outcome import OUTCOME_FD, Outcome, send

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from workers.fleet import host_launchers
    from workers.fleet.ray_cluster import Demand

_PAUSE_SECONDS = 0.3
_PLACE_SECONDS = 1
"""Ray places free devices within this time; it accepts whole seconds only."""
_YIELD_SECONDS = 30.0
"""A trial that the fleet is too small for keeps other trials waiting for this long."""
_RELEASE_SECONDS = 10.0
_log = logging.getLogger("workers.fleet.driver")


def main(arguments: Sequence[str], module: str = "workers.gang.launcher") -> NoReturn:
    """Run the attempt, with `module` on every host, and send its outcome to the supervisor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, processes.BLOCKED)  # in every thread: the driver fetches them
    die_with(os.getppid())
    configure_logging()
    os.environ["RAY_AUTH_MODE"] = "token"  # read by Ray when it is imported
    driver = _Driver(Settings(), AttemptRef.parse(arguments[0]))
    try:
        outcome = driver.run(module)
    except (MergeNetError, RedisError) as error:
        outcome = Outcome.of_error(error)
    if outcome.ended == "failed":
        _log.error("%s: %s", outcome.code, outcome.message)
    send(int(os.environ[OUTCOME_FD]), outcome)
    # a head that is gone must not keep the attempt from ending: Ray frees the devices anyway when this process ends
    thread = threading.Thread(target=driver.release, daemon=True)
    thread.start()
    thread.join(_RELEASE_SECONDS)
    os._exit(0)


class _Driver:
    def __init__(self, settings: Settings, attempt: AttemptRef) -> None:
        self._settings, self._attempt = settings, attempt
        self._store = Store(settings.redis())
        self._job: Job = self._store.get(attempt.job_id)
        self._reason: str | None = None
        """What the record says that the trial waits for."""
        self._stopped = False
        self._group: PlacementGroup | None = None

    def run(self, module: str) -> Outcome:
        """Run the attempt, from the queue to its end."""
        resources = self._store.spec(self._job.id).resources
        from workers.fleet import host_launchers, ray_cluster

        entry = QueueEntry(self._job, self._attempt)
        try:
            demand = self._wait_for_devices(entry, resources)
        finally:
            with contextlib.suppress(RedisError):
                entry.leave(self._store.redis)
        if demand is None or self._group is None:
            return Outcome.interrupted(self._reason) if self._reason else Outcome.stopped_before_training()
        self._write_reason(None)
        hosts = ray_cluster.hosts(self._group, demand, self._attempt, os.environ[processes.TAG])
        launchers = host_launchers.Launchers(hosts, self._stop_requested)
        try:
            _log.info("training on %s", launchers.start(module, demand.devices))
            return self._attend(launchers)
        except host_launchers.Stopped:
            return Outcome.stopped_before_training()
        finally:
            launchers.end()

    def release(self) -> None:
        """Free the devices."""
        if self._group is not None:
            from workers.fleet import ray_cluster

            ray_cluster.release(self._group)
            self._group = None

    def _attend(self, launchers: host_launchers.Launchers) -> Outcome:
        """Pass signals on until there is an outcome for all hosts."""
        while True:
            while (received := signal.sigtimedwait(processes.BLOCKED, 0)) is not None:
                launchers.send(received.si_signo)
            outcome = launchers.poll(self._settings.silence_seconds)
            if outcome is not None:
                return outcome

    def _wait_for_devices(self, entry: QueueEntry, resources: ResourcesSpec) -> Demand | None:
        """Wait until `_group` holds the devices; None if the trial has to stop, or lets others go first."""
        from workers.fleet import ray_cluster

        address = self._settings.ray_address or ""
        while (unreachable := ray_cluster.connect(address)) is not None:
            self._write_reason(unreachable)
            if self._stop_requested(_PAUSE_SECONDS):
                return None
        demand = ray_cluster.demand(resources.nodes, resources.devices, resources.device)
        too_small_since: float | None = None
        while not self._stop_requested(_PAUSE_SECONDS):
            hosts = ray_cluster.count_hosts(demand)
            if hosts.large_enough < demand.nodes:
                self._leave(entry)
                self._write_reason(f"needs {demand}, the fleet has {hosts.large_enough} of them")
                too_small_since = too_small_since or time.monotonic()
                if time.monotonic() > too_small_since + _YIELD_SECONDS and self._others_wait():
                    return None
                continue
            too_small_since = None
            queue_position = self._queue_position(entry)
            if queue_position > 0:
                self.release()
            else:
                self._group = self._group or ray_cluster.request(demand)
                if self._group.wait(_PLACE_SECONDS):
                    return demand
            free = f"{hosts.free} {'is' if hosts.free == 1 else 'are'} free"
            self._write_reason(f"needs {demand}, {free}; position {queue_position + 1} in the queue")
        self._reason = None
        return None

    def _leave(self, entry: QueueEntry) -> None:
        """Let others go first."""
        self.release()
        with contextlib.suppress(RedisError):
            entry.leave(self._store.redis)

    def _queue_position(self, entry: QueueEntry) -> int:
        try:
            return entry.join(self._store.redis)
        except RedisError as error:
            _log.warning("the queue cannot be read: %s", error)
            return 1

    def _others_wait(self) -> bool:
        with contextlib.suppress(RedisError):
            return rq_queue.waiting(self._settings.redis(decode=False), rq_queue.FLEET) > 0
        return False

    def _stop_requested(self, seconds: float = 0) -> bool:
        """Whether the trial has to stop; waits for such a request for at most `seconds`."""
        received = signal.sigtimedwait({signal.SIGTERM}, seconds)
        self._stopped = self._stopped or received is not None
        return self._stopped

    def _write_reason(self, reason: str | None) -> None:
        """Record what the trial waits for, if that has changed. Raises: `StaleAttempt`."""
        if reason == self._reason:
            return
        try:
            self._store.update(self._job.id, lambda job: state_machine.waits(job, self._attempt, reason))
            if reason is not None:
                events.add_event(self._store.redis, self._job.id, "trial.waiting", reason, attempt=self._attempt)
                _log.info("waits: %s", reason)
        except NotFound as error:
            raise StaleAttempt(error.message) from None
        except RedisError as error:
            _log.warning("the reason for waiting is not written yet: %s", error)
            return
        self._reason = reason


if __name__ == "__main__":
    main(sys.argv[1:])
