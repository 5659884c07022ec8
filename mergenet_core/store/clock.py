"""Redis's clock, by which hosts agree on the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from redis import Redis


def redis_now(redis: Redis) -> datetime:
    """The current time on Redis's clock."""
    seconds, micro = redis.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micro)
