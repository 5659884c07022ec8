"""Workers that are alive, as a Redis hash."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

from redis import Redis

from mergenet_core.records.record import now
from mergenet_core.records.workers import WorkerInfo
from mergenet_core.store import keys

WORKER_SECONDS = 60
"""A worker that has not reported for this long is no longer listed."""


def report_alive(redis: Redis, worker: WorkerInfo) -> None:
    """Record what a worker is doing."""
    redis.hset(keys.WORKERS, worker.name, worker.model_dump_json())


def remove_worker(redis: Redis, name: str) -> None:
    """Remove a worker from the list."""
    redis.hdel(keys.WORKERS, name)


def workers(redis: Redis) -> list[WorkerInfo]:
    """The workers that reported within `WORKER_SECONDS`, by name."""
    found = [
        WorkerInfo.model_validate_json(text) for text in cast("dict[str, str]", redis.hgetall(keys.WORKERS)).values()
    ]
    oldest = now() - timedelta(seconds=WORKER_SECONDS)
    for worker in found:
        if worker.seen_at < oldest:
            remove_worker(redis, worker.name)
    return sorted((worker for worker in found if worker.seen_at >= oldest), key=lambda worker: worker.name)
