"""A training process's reports and requests to it. Neither delays the training.

Everything is written to the trial's folder at once, and to Redis by a thread about once a second. While Redis is away,
reports wait in bounded buffers and the training goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, cast

from pydantic import JsonValue
from redis import Redis
from redis.exceptions import RedisError

from mergenet_core.errors import NotFound, StaleAttempt
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.events import Metric, Progress
from mergenet_core.records.job import Checkpoint
from mergenet_core.records.record import now
from mergenet_core.store import events
from mergenet_core.store.jobs import Store
from workers.processes import BLOCKED

FLUSH_SECONDS = 1.0
_METRICS_HELD, _EVENTS_HELD = 50_000, 1_000
_Split = Literal["train", "validation", "test"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """An event that is not sent yet."""

    type: str
    message: str
    level: str
    data: Mapping[str, JsonValue]


class RedisReporter:
    """The `Reporter` of one attempt. Call `close` at its end, so that nothing stays in the buffers."""

    def __init__(self, redis: Redis, attempt: AttemptRef, folder: Path) -> None:
        self._store = Store(redis)
        self._attempt, self._folder = attempt, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics: deque[Metric] = deque(maxlen=_METRICS_HELD)
        self._events: deque[_Entry] = deque(maxlen=_EVENTS_HELD)
        self._progress: Progress | None = None
        self._checkpoint: Checkpoint | None = None
        self._begun = False
        """The work has begun, and the record is to become `running`."""
        self._running = False
        """The record is `running`."""
        self._redis_away = False
        self.stale = False
        """A newer attempt owns the trial, and refuses what this one writes."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._flush_regularly, name="reporter", daemon=True)
        self._thread.start()

    def event(self, type: str, message: str, *, level: str = "info", **data: JsonValue) -> None:
        """Report that something happened."""
        entry = _Entry(type, message, level, data)
        self._mirror("events.jsonl", {"ts": now().isoformat(), "attempt": self._attempt.number, **vars(entry)})
        self._events.append(entry)

    def metric(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Report measured numbers; those that are not finite are left out."""
        for name, value in values.items():
            if not math.isfinite(value):  # JSON cannot hold it, and the trial is about to fail anyway
                continue
            metric = Metric(
                step=step,
                ts=now(),
                name=name,
                value=value,
                split=cast("_Split", split),
                trial=self._attempt.trial_id,
                attempt=self._attempt.number,
            )
            self._mirror("metrics.jsonl", metric.model_dump(mode="json"))
            self._metrics.append(metric)

    def begin_step(self) -> None:
        """Nothing is reported of a step before it is done."""

    def progress(self, step: int, steps: int, *, loss: float, metric: float | None, eta_seconds: float | None) -> None:
        """Report that a step was done; only the newest is sent."""
        self._begun = True
        self._progress = Progress(
            trial=self._attempt.trial_id,
            attempt=self._attempt.number,
            step=step,
            steps=steps,
            loss=loss,
            metric=metric,
            eta_seconds=eta_seconds,
            at=now(),
        )

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Report a checkpoint on disk; while Redis is away the record is updated later. Raises: `StaleAttempt`."""
        self.event(
            "checkpoint.published",
            f"checkpoint at step {checkpoint.step}",
            step=checkpoint.step,
            path=checkpoint.path,
        )
        self._checkpoint = checkpoint
        if not self._redis_away:  # otherwise every checkpoint would wait for a connection
            self._flush()
        if self.stale:
            raise StaleAttempt(f"attempt {self._attempt.number} of {self._attempt.trial_path} is no longer the newest")

    def begin(self) -> None:
        """Make the record `running`, as the first `progress` also does."""
        self._begun = True

    def close(self, timeout_seconds: float) -> None:
        """Send what is left, waiting at most `timeout_seconds` for Redis."""
        self._closing.set()
        self._thread.join(timeout_seconds)

    def _flush_regularly(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()
        while self._flush() is False:
            threading.Event().wait(0.1)

    def _flush(self) -> bool:
        with self._lock:
            try:
                self._send()
                self._redis_away = False
            except (StaleAttempt, NotFound):
                self.stale = True
            except RedisError as error:
                if not self._redis_away:
                    _log.warning("Redis cannot be reached; reports are kept for later: %s", error)
                self._redis_away = True
                return False
            return True

    def _send(self) -> None:
        job_id = self._attempt.job_id
        if self._begun and not self._running:
            self._store.update(job_id, lambda job: state_machine.started(job, self._attempt))
            self._running = True
        if (checkpoint := self._checkpoint) is not None:
            self._store.update(job_id, lambda job: state_machine.checkpointed(job, self._attempt, checkpoint))
            self._checkpoint = None
        while self._events:
            entry = self._events[0]
            events.add_event(
                self._store.redis,
                job_id,
                entry.type,
                entry.message,
                level=entry.level,
                attempt=self._attempt,
                data=entry.data,
            )
            self._events.popleft()
        if metrics := list(self._metrics):
            events.add_metrics(self._store.redis, job_id, metrics)
            for _ in metrics:
                self._metrics.popleft()
        if (progress := self._progress) is not None:
            events.set_progress(self._store.redis, job_id, progress)

    def _mirror(self, name: str, entry: Mapping[str, object]) -> None:
        # the next checkpoint reports a full disk; a line that is lost here must not end a training
        with contextlib.suppress(OSError), (self._folder / name).open("a") as file:
            file.write(json.dumps(entry) + "\n")


class SignalControl:
    """The `Control` of one attempt: SIGTERM asks to stop, SIGUSR1 for a checkpoint."""

    def __init__(self) -> None:
        self.stop = False
        self._checkpoint = False
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGUSR1, self._receive)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)

    def requested(self) -> Literal["stop", "checkpoint"] | None:
        """Return what was requested; each request for a checkpoint is returned once."""
        if self.stop:
            return "stop"
        if self._checkpoint:
            self._checkpoint = False
            return "checkpoint"
        return None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.stop = True
        else:
            self._checkpoint = True
