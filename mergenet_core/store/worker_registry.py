"""Workers that are alive, as a Redis hash."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

from redis import Redis

from mergenet_core.records.record import now
from mergenet_core.records.workers import WorkerInfo

WORKER_SECONDS = 60
"""A worker that said nothing for so long is no longer listed."""
_WORKERS = "mergenet:workers"


def say_alive(redis: Redis, worker: WorkerInfo) -> None:
    """Record what a worker is doing."""
    redis.hset(_WORKERS, worker.name, worker.model_dump_json())


def say_gone(redis: Redis, name: str) -> None:
    """Take a worker off the list."""
    redis.hdel(_WORKERS, name)


def workers(redis: Redis) -> list[WorkerInfo]:
    """The workers heard of within `WORKER_SECONDS`, by name."""
    found = [WorkerInfo.model_validate_json(text) for text in cast("dict[str, str]", redis.hgetall(_WORKERS)).values()]
    oldest = now() - timedelta(seconds=WORKER_SECONDS)
    for worker in found:
        if worker.seen_at < oldest:
            say_gone(redis, worker.name)
    return sorted((worker for worker in found if worker.seen_at >= oldest), key=lambda worker: worker.name)
