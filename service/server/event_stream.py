"""Streams a job's events from an event id on, with its progress in between, until the job has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable
from typing import cast

from fastapi.sse import ServerSentEvent
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mergenet_core.records.events import Progress
from mergenet_core.records.job import TERMINAL, Job
from mergenet_core.store import events, keys

log = logging.getLogger("mergenet.service")

BLOCK_MILLISECONDS = 1000
"""How long one read waits for an event, and how often progress is read."""
PAGE = 200
_Page = list[tuple[str, list[tuple[str, dict[str, str]]]]]


async def follow(redis: Redis, job_id: str, after: str) -> AsyncIterator[ServerSentEvent]:
    """Yield every event after an event id, then new ones; end when the job has ended.

    The stream also ends when Redis fails. The reader reconnects with its last event id, and gets 503 until Redis
    answers again.
    """
    sent: dict[str, Progress] = {}
    progress_read_at = 0.0
    try:
        while True:
            # read the state first: once it is terminal, the event of that state is already in the stream
            record = await redis.get(keys.job(job_id))
            ended = record is None or Job.model_validate_json(record).state in TERMINAL
            block = None if ended else BLOCK_MILLISECONDS
            page = cast("_Page", await redis.xread({keys.job_events(job_id): after}, count=PAGE, block=block))
            entries = page[0][1] if page else []
            for after, fields in entries:
                event = events.to_event(job_id, after, fields)
                yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.type, id=after)
            if time.monotonic() - progress_read_at >= BLOCK_MILLISECONDS / 1000 and not ended:
                progress_read_at = time.monotonic()
                for progress in await _changed_progress(redis, job_id, sent):
                    yield ServerSentEvent(raw_data=progress.model_dump_json(), event="progress")
            if ended and not entries:
                return
    except RedisError as error:
        log.warning("an event stream of job %s was ended by an error of Redis: %s", job_id, error)


async def _changed_progress(redis: Redis, job_id: str, sent: dict[str, Progress]) -> list[Progress]:
    """The progress of trials that differs from what was sent last; updates `sent`."""
    found = await cast("Awaitable[dict[str, str]]", redis.hgetall(keys.job_progress(job_id)))
    progress = {trial: Progress.model_validate_json(text) for trial, text in found.items()}
    changed = [one for trial, one in progress.items() if sent.get(trial) != one]
    sent |= progress
    return changed
