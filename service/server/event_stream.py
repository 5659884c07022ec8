"""Follows a job: its events from a place in the stream on, its progress in between, until it has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Any, cast

from fastapi.sse import ServerSentEvent
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mergenet_core.records.events import Progress
from mergenet_core.records.job import TERMINAL, Job
from mergenet_core.store import events
from mergenet_core.store.jobs import record_key

log = logging.getLogger("mergenet.service")

BLOCK_MILLISECONDS = 1000
"""How long one read waits for an event; also how often progress is looked at."""
PAGE = 200
_Page = list[tuple[str, list[tuple[str, dict[str, str]]]]]


async def follow(redis: Redis, job_id: str, after: str) -> AsyncIterator[ServerSentEvent]:
    """Everything after an event id, then what comes; ends with the job.

    When Redis goes away the stream ends too: the reader comes back with its last event id and is told 503 till then.
    """
    told: dict[str, Progress] = {}
    looked = 0.0
    try:
        while True:
            # the state first: once it is terminal, the event that says so is already in the stream
            record = await redis.get(record_key(job_id))
            ended = record is None or Job.model_validate_json(record).state in TERMINAL
            block = None if ended else BLOCK_MILLISECONDS
            page = cast("_Page", await redis.xread({events.events_key(job_id): after}, count=PAGE, block=block))
            entries = page[0][1] if page else []
            for after, fields in entries:
                event = events.to_event(job_id, after, fields)
                yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.type, id=after)
            if time.monotonic() - looked >= BLOCK_MILLISECONDS / 1000 and not ended:
                looked = time.monotonic()
                for progress in await _news(redis, job_id, told):
                    yield ServerSentEvent(raw_data=progress.model_dump_json(), event="progress")
            if ended and not entries:
                return
    except RedisError as error:
        log.warning("a stream of %s ends early: %s", job_id, error)


async def _news(redis: Any, job_id: str, told: dict[str, Progress]) -> list[Progress]:
    """What moved since it was told last."""
    news = []
    for trial, text in (await redis.hgetall(events.keys(job_id)[2])).items():
        progress = Progress.model_validate_json(text)
        if told.get(trial) != progress:
            told[trial] = progress
            news.append(progress)
    return news
