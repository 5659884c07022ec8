"""What a request handler works with: settings, records, connections to Redis, metrics."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Annotated, cast

import redis.asyncio
from fastapi import Depends, Path, Request
from pydantic import AfterValidator
from redis import Redis

from mergenet_core.errors import NotFound
from mergenet_core.store.jobs import Store
from service.server.event_stream import StreamLimits
from service.server.prometheus import ServiceMetrics
from service.server.settings import ServiceSettings
from service.server.wrong_keys import WrongKeys

JOB_ID = r"^[0-9A-HJKMNP-TV-Z]{26}$"
"""The form of a job's id, a ULID."""
REDIS_SECONDS = 2.0
"""Timeout of a Redis command, after which the request is answered with 503."""


@dataclass(frozen=True)
class Context:
    """The service's settings and connections; a connection is opened when it is first used."""

    settings: ServiceSettings
    store: Store
    queue_redis: Redis
    """For RQ; it does not decode responses."""
    stream_redis: redis.asyncio.Redis
    """For event streams, which block on a read."""
    metrics: ServiceMetrics
    streams: StreamLimits
    """The event streams that are open."""
    wrong_keys: WrongKeys
    """Who sent wrong keys just now."""
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a job document is read."""
    unconfirmed: set[str] = field(default_factory=set)
    """Ids of jobs whose write may not have reached Redis; resolved by `submission.settle`."""

    @property
    def redis(self) -> Redis:
        """The connection that decodes responses."""
        return self.store.redis


def connect(settings: ServiceSettings) -> Context:
    """The service's connections, not opened yet."""
    store = Store(settings.redis(timeout_seconds=REDIS_SECONDS))
    return Context(
        settings=settings,
        store=store,
        queue_redis=settings.redis(decode=False, timeout_seconds=REDIS_SECONDS),
        stream_redis=redis.asyncio.Redis.from_url(
            settings.redis_url.get_secret_value(),
            decode_responses=True,
            socket_connect_timeout=REDIS_SECONDS,
            socket_timeout=10,
        ),
        metrics=ServiceMetrics(store),
        streams=StreamLimits(settings.max_streams, settings.max_streams_per_key),
        wrong_keys=WrongKeys(settings.wrong_keys_per_minute),
    )


def _check_form(job_id: str) -> str:
    if not re.fullmatch(JOB_ID, job_id, re.ASCII):
        raise NotFound(f"there is no job {job_id[:40]}; GET /jobs lists the jobs")
    return job_id


JobId = Annotated[str, AfterValidator(_check_form), Path(description="A job's id, as `POST /jobs` returned it.")]
"""A ULID; text of another form never reaches Redis or the disk."""


def _context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


Ctx = Annotated[Context, Depends(_context)]
