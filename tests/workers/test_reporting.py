"""Reports never delay a training, whether Redis is gone, slow or back again, or a newer attempt owns the trial."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from mergenet_core.errors import StaleAttempt
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Checkpoint, Job, Trial
from mergenet_core.settings import Settings
from mergenet_core.spec.parse import parse
from mergenet_core.store import events
from mergenet_core.store.jobs import Store
from tests.conftest import RedisServer
from tests.harness import document, job_of, wait
from workers.reporting import RedisReporter, SignalControl

CHECKPOINT = Checkpoint(step=5, path="trials/t/checkpoints/step-00000005", manifest_sha256="0", attempt=1)


@pytest.fixture
def job(redis: Redis) -> Job:
    store = Store(redis)
    created = state_machine.submit(job_of((Trial(id="t", kind="arm", arm="control"),)))
    job = store.create(created, parse(document()), {}).job
    return store.update(job.id, lambda record: state_machine.claim(record, AttemptRef(record.id, "t", 1), "w"))


@pytest.fixture
def reporter(redis_server: RedisServer, job: Job, tmp_path: Path) -> Iterator[RedisReporter]:
    settings = Settings.model_validate({"redis_url": redis_server.url})
    quick = settings.redis(timeout_seconds=0.3, retries=0)
    reporter = RedisReporter(quick, AttemptRef(job.id, "t", 1), tmp_path)
    yield reporter
    reporter.close(5)


def test_the_first_step_makes_the_trial_running(redis: Redis, job: Job, reporter: RedisReporter) -> None:
    reporter.progress(1, 10, loss=0.5, metric=None, eta_seconds=9.0)
    reporter.close(5)
    assert Store(redis).get(job.id).trial("t").state == "running"
    assert events.progress(redis, job.id)["t"].step == 1


def test_what_was_reported_arrives_once_and_in_order(redis: Redis, job: Job, reporter: RedisReporter) -> None:
    for step in range(1, 6):
        reporter.metric(step, "train", {"loss": 1 / step})
    reporter.event("note", "hello", level="warning", detail=1)
    reporter.close(5)
    assert [metric.step for metric in events.metrics(redis, job.id)] == [1, 2, 3, 4, 5]
    note = [event for event in events.events(redis, job.id) if event.type == "note"]
    assert [(event.message, event.level, event.data, event.attempt) for event in note] == [
        ("hello", "warning", {"detail": 1}, 1)
    ]


def test_a_silent_redis_does_not_delay_a_training_and_gets_everything_later(
    redis: Redis, redis_server: RedisServer, job: Job, reporter: RedisReporter, tmp_path: Path
) -> None:
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        for step in range(1, 501):
            reporter.progress(step, 500, loss=0.5, metric=None, eta_seconds=None)
            reporter.metric(step, "train", {"loss": 0.5})
        for _ in range(3):
            reporter.checkpoint(CHECKPOINT)
        assert time.monotonic() - begun < 2, "at most one call may have waited for Redis"
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 500
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    wait(lambda: Store(redis).get(job.id).trial("t").checkpoint == CHECKPOINT, "the pointer to catch up", str)
    reporter.close(5)
    assert len(events.metrics(redis, job.id)) == 500


def test_a_newer_attempt_stops_the_older_one_at_its_next_checkpoint(
    redis: Redis, job: Job, reporter: RedisReporter
) -> None:
    Store(redis).update(
        job.id, lambda record: state_machine.hand_back(record, record.attempt(record.trial("t")), "drained")
    )
    Store(redis).update(job.id, lambda record: state_machine.claim(record, AttemptRef(record.id, "t", 2), "other"))
    with pytest.raises(StaleAttempt, match="no longer the newest"):
        reporter.checkpoint(CHECKPOINT)
    assert Store(redis).get(job.id).trial("t").checkpoint is None


def test_a_number_that_json_lacks_is_left_out(redis: Redis, job: Job, reporter: RedisReporter) -> None:
    reporter.metric(1, "train", {"loss": float("nan")})
    reporter.metric(2, "train", {"loss": 0.5})
    reporter.close(5)
    assert [metric.step for metric in events.metrics(redis, job.id)] == [2]


def test_the_mirror_holds_events_as_json_lines(reporter: RedisReporter, tmp_path: Path) -> None:
    reporter.event("note", "hello", detail=[1, 2])
    line = json.loads((tmp_path / "events.jsonl").read_text())
    assert (line["type"], line["data"], line["attempt"]) == ("note", {"detail": [1, 2]}, 1)


def test_signals_become_requests() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        control = SignalControl()
        assert control.requested() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert control.requested() == "checkpoint"
        assert control.requested() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert [control.requested(), control.requested()] == ["stop", "stop"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
