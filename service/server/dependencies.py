"""What a request works with: settings, records, the queue's connection, a connection for blocking reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, cast

import redis.asyncio
from fastapi import Depends, Path, Request
from pydantic import AfterValidator
from redis import Redis

from mergenet_core.errors import NotFound
from mergenet_core.store.jobs import Store
from service.server.settings import ServiceSettings

REDIS_SECONDS = 2.0
"""Patience with Redis: a request must not hang for long before it is told to come again."""


@dataclass(frozen=True)
class Context:
    """The service's connections; none is opened before it is needed."""

    settings: ServiceSettings
    store: Store
    queue_redis: Redis
    """For RQ, which does not decode."""
    stream_redis: redis.asyncio.Redis
    """For readers that block on a stream."""
    unsure: set[str] = field(default_factory=set)
    """Jobs of which Redis did not say whether it wrote them; settled once it answers again."""

    @property
    def redis(self) -> Redis:
        """The decoding connection."""
        return self.store.redis


def connect(settings: ServiceSettings) -> Context:
    """The service's connections, not opened yet."""
    return Context(
        settings=settings,
        store=Store(settings.redis(timeout_seconds=REDIS_SECONDS)),
        queue_redis=settings.redis(decode=False, timeout_seconds=REDIS_SECONDS),
        stream_redis=redis.asyncio.Redis.from_url(
            settings.redis_url.get_secret_value(),
            decode_responses=True,
            socket_connect_timeout=REDIS_SECONDS,
            socket_timeout=10,
        ),
    )


def _known_shape(job_id: str) -> str:
    if not re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", job_id, re.ASCII):
        raise NotFound(f"there is no job {job_id[:40]}; GET /jobs lists those there are")
    return job_id


JobId = Annotated[str, AfterValidator(_known_shape), Path(description="A job's id, as `POST /jobs` gave it.")]
"""A ULID; what has another form never reaches Redis or the disk."""


def _context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


Ctx = Annotated[Context, Depends(_context)]
