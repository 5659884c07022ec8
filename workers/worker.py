"""The worker: RQ's, restricted to one function; it ends whole process trees and survives a Redis that goes away.

RQ only delivers messages. The record decides what state a trial is in, who may change it and when it runs again. For
each message RQ forks a process that it calls the work horse; here that is the supervisor of one attempt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import psutil
from redis.exceptions import RedisError
from rq import Worker
from rq.exceptions import NoSuchJobError, StopRequested
from rq.executions import Execution
from rq.job import Job as RqMessage
from rq.queue import Queue
from rq.serializers import JSONSerializer

from mergenet_core.errors import MergeNetError, WorkerLost
from mergenet_core.processes import trees
from mergenet_core.processes.linux import die_with
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.records.record import now
from mergenet_core.records.workers import WorkerInfo
from mergenet_core.settings import Settings
from mergenet_core.store import device_leases, rq_queue, worker_registry
from mergenet_core.store.clock import redis_now
from mergenet_core.store.jobs import Store
from mergenet_core.store.reconciler import reconcile
from workers import supervisor
from workers.processes import attempt_tag, tagged

_WORKER_TTL_SECONDS = 30
_LISTEN_SECONDS = 1
"""Length of one blocking read of the queue; between two, the worker sends a heartbeat and reconciles the queue."""
_END_SECONDS = 2.0
"""How long a supervisor may take to end after SIGTERM before it is killed, and killed processes to be gone."""
_log = logging.getLogger("workers.worker")


class Message(RqMessage):  # type: ignore[misc]  # rq ships no types
    """A message that can name one function and an attempt; everything else in it is ignored."""

    def restore(self, raw_data: object) -> None:
        """Read the message; one that cannot be read is treated as missing."""
        try:
            super().restore(raw_data)
        except Exception as error:
            raise NoSuchJobError(f"an unreadable message: {error}") from error
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks: list[object] = []

    @property
    def func(self) -> Callable[[str], None]:
        """The entry point. Raises: `PermissionError` for any other function, and for arguments that name no attempt."""
        _ = self.attempt
        return supervisor.run

    @property
    def attempt(self) -> AttemptRef:
        """Which attempt to run. Raises: `PermissionError` if the message is anything but the call of `func` with it."""
        types = [type(argument) for argument in self.args]
        with contextlib.suppress(ValueError):
            if self.func_name == rq_queue.ENTRY_POINT and types == [str] and not (self.instance or self.kwargs):
                return AttemptRef.parse(self.args[0])
        raise PermissionError(f"refused: a message may only call {rq_queue.ENTRY_POINT} with JOB/TRIAL/NUMBER")


class TrialWorker(Worker):  # type: ignore[misc]
    """One trial at a time. SIGTERM drains it: the running trial checkpoints and is handed back."""

    job_class = Message
    max_connection_wait_time = 2.0

    def __init__(self, settings: Settings, info: WorkerInfo) -> None:
        self._settings = settings
        self._records = settings.redis(timeout_seconds=2, retries=0)
        self._info = info
        raw = settings.redis(decode=False)
        # a trial that needs more devices than this host has is left to a larger one
        counts = range(1, len(info.devices) + 1)
        kinds = (False, True) if info.device.startswith("cuda") else (False,)
        names = [rq_queue.queue_of_devices(count, cuda=cuda) for count in counts for cuda in kinds]
        if info.fleet:
            names = [rq_queue.FLEET]
        super().__init__(
            [Queue(name, connection=raw, serializer=JSONSerializer, job_class=Message) for name in names],
            name=info.name,
            connection=raw,
            serializer=JSONSerializer,
            worker_ttl=_WORKER_TTL_SECONDS,
            job_monitoring_interval=_LISTEN_SECONDS,
            log_job_description=False,
        )

    @property
    def dequeue_timeout(self) -> int:
        """Seconds of one blocking read of the queue."""
        return _LISTEN_SECONDS

    def subscribe(self) -> None:
        """Take no commands: what to stop is in the record, and a thread would not survive the fork."""

    def unsubscribe(self) -> None:
        """Nothing was subscribed to."""

    def check_for_suspension(self, burst: bool) -> None:
        """Never suspended from outside."""

    def heartbeat(self, timeout: int | None = None, pipeline: object = None) -> None:
        """Send RQ's heartbeat and the registry's, and reconcile the queue."""
        with _redis_may_be_away():
            super().heartbeat(timeout, pipeline)
        if not self.is_horse:
            self._report_and_reconcile()

    def set_state(self, state: str, pipeline: object = None) -> None:
        """Note what the worker does, in Redis too if it can be reached."""
        self._state = state
        with _redis_may_be_away():
            super().set_state(state, pipeline)

    def run_maintenance_tasks(self) -> None:
        """RQ's own housekeeping."""
        with _redis_may_be_away():
            super().run_maintenance_tasks()

    def register_death(self) -> None:
        """Take the worker off the lists."""
        with _redis_may_be_away():
            super().register_death()
            worker_registry.remove_worker(self._records, self.name)

    def maintain_heartbeats(self, job: Message, execution: Execution) -> None:
        """Send heartbeats while a trial runs; repeat a request to stop, for a work horse too young to have heard it."""
        with _redis_may_be_away():
            super().maintain_heartbeats(job, execution)
        if self._stop_requested:
            self._signal_horse(signal.SIGTERM)

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> object:
        """Wait for a message, however long Redis is away or refuses to work."""
        while True:
            try:
                # the oldest job's trial comes first, however many devices it needs
                self._ordered_queues = rq_queue.oldest_first(self.connection, self.queues)
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except RedisError as error:
                _log.warning("no message can be taken: %s", error)
                time.sleep(1)

    def execute_job(self, job: Message, queue: Queue) -> None:
        """Run one message in a work horse; however that ends, nothing of the attempt is left running."""
        self._note_work(job)
        try:
            with _redis_may_be_away():
                super().execute_job(job, queue)
        finally:
            self._clear_up(job, queue)
            self.executions.clear()

    def fork_work_horse(self, job: Message, queue: Queue) -> None:
        """Fork the work horse, and pass on a request to stop that came just before."""
        super().fork_work_horse(job, queue)
        if self._stop_requested:
            self._signal_horse(signal.SIGTERM)

    def main_work_horse(self, job: Message, queue: Queue) -> None:
        """The work horse's main function: it dies with the worker."""
        die_with(self.pid)
        super().main_work_horse(job, queue)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM: no new trial; the running one checkpoints, is handed back, and the worker ends."""
        signal.signal(signal.SIGINT, self.request_force_stop)
        signal.signal(signal.SIGTERM, self.request_force_stop)
        self._shutdown_requested_date = now()
        self._info = self._info.model_copy(update={"state": "draining"})
        self._stop_requested = True  # also where the exception is lost in code that takes any for its own
        if self.get_state() != "busy":
            raise StopRequested
        self._signal_horse(signal.SIGTERM)

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """End the work horse with everything it started: SIGTERM, a short wait, SIGKILL."""
        if not self.horse_pid:  # 0 would mean this process's own group
            return
        signal.alarm(0)  # RQ's monitor sets one, and its handler would raise out of the wait below
        with contextlib.suppress(psutil.Error):
            horse = psutil.Process(self.horse_pid)
            below = horse.children(recursive=True)
            self._signal_horse(signal.SIGTERM)
            deadline = time.monotonic() + _END_SECONDS
            while trees.runs(horse) and time.monotonic() < deadline:
                time.sleep(0.05)
            trees.kill([horse, *below])

    def _signal_horse(self, number: signal.Signals) -> None:
        if self.horse_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.horse_pid, number)

    def _report_and_reconcile(self) -> None:
        with _redis_may_be_away():
            self._info = self._info.model_copy(update={"seen_at": now()})
            worker_registry.report_alive(self._records, self._info)
            lease = self._settings.lease_seconds
            reconcile(Store(self._records), self.connection, every_seconds=min(5.0, lease / 3), patience_seconds=lease)

    def _note_work(self, job: Message) -> None:
        with contextlib.suppress(Exception):  # the work horse refuses a message that is not ours, with a log line
            attempt = job.attempt
            self._info = self._info.model_copy(
                update={"state": "busy", "job": attempt.job_id, "trial": attempt.trial_id}
            )

    def _clear_up(self, job: Message, queue: Queue) -> None:
        """After the work horse: end what is left of the attempt, and record its loss before its lease runs out."""
        if self._info.state == "busy":
            self._info = self._info.model_copy(update={"state": "idle"})
        self._info = self._info.model_copy(update={"job": None, "trial": None})
        try:
            attempt = job.attempt
        except Exception:  # a message that is not ours
            return
        with _redis_may_be_away():
            rq_queue.forget_ended(self.connection, queue.name, attempt)
        tag = attempt_tag(attempt, self.name)
        ended = not trees.end(tagged(tag), _END_SECONDS)
        reason = "the supervising process on the worker was killed"

        def lose(record: Job) -> Job:
            if record.trial(attempt.trial_id).worker != self.name:
                return record
            at = redis_now(self._records)
            return state_machine.fail(record, attempt, code=WorkerLost.code, reason=reason, retryable=True, at=at)

        with _redis_may_be_away(), contextlib.suppress(MergeNetError, KeyError):
            if ended and self._info.ledger is not None:
                # otherwise its devices are free when their lease ends
                device_leases.leave(self._records, self._info.ledger, tag)
            rq_queue.enqueue(self.connection, Store(self._records).update(attempt.job_id, lose))


@contextlib.contextmanager
def _redis_may_be_away() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        _log.warning("Redis cannot be reached: %s", error)
