"""The line of trials on several hosts: by the age of their jobs, and only the living stand in it."""

from __future__ import annotations

from datetime import timedelta

from redis import Redis

from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.store.fleet_queue import QueueEntry
from mergenet_core.store.jobs import Store
from tests.store.test_jobs import create


def claimed(redis: Redis, *, older_by_seconds: float = 0) -> tuple[Job, QueueEntry]:
    """A job of which a worker has just taken the trial."""
    store = Store(redis)
    job = create(store)
    age = timedelta(seconds=older_by_seconds)
    job = store.update(job.id, lambda job: job.model_copy(update={"created_at": job.created_at - age}))
    job = store.update(job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), "worker"))
    return job, QueueEntry(job, AttemptRef(job.id, "control-0", 1))


def test_the_older_job_is_first_whoever_asked_first(redis: Redis) -> None:
    (_, young), (_, old) = claimed(redis), claimed(redis, older_by_seconds=5)
    assert young.join(redis) == 0
    assert (old.join(redis), young.join(redis)) == (0, 1)
    old.leave(redis)
    assert young.join(redis) == 0


def test_joining_again_keeps_the_queue_position(redis: Redis) -> None:
    (_, first), (_, second) = claimed(redis, older_by_seconds=1), claimed(redis)
    first.join(redis)
    assert [second.join(redis) for _ in range(3)] == [1, 1, 1]


def test_nobody_waits_for_an_attempt_that_lost_its_lease(redis: Redis) -> None:
    (job, dead), (_, living) = claimed(redis, older_by_seconds=5), claimed(redis)
    dead.join(redis)
    assert living.join(redis) == 1
    attempt = AttemptRef(job.id, "control-0", 1)
    Store(redis).update(
        job.id, lambda job: state_machine.fail(job, attempt, code="node-lost", reason="gone", retryable=True)
    )
    assert living.join(redis) == 0
    assert dead.join(redis) == 0, "it may join again"
