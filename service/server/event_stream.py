"""Streams a job's events from an event id on, with its progress in between, until the job has ended.

The number of streams is bounded, for each key and in all. A stream holds one page of events at a time, and waits while
its reader does not read; the kernel ends the connection of one that reads nothing for long (`service.__main__`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from typing import cast

from fastapi.responses import StreamingResponse
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mergenet_core.errors import TooManyRequests
from mergenet_core.records.events import Progress
from mergenet_core.records.job import TERMINAL, Job
from mergenet_core.store import events, keys

log = logging.getLogger("mergenet.service")

BLOCK_MILLISECONDS = 1000
"""How long one read waits for an event, and how often progress is read."""
PAGE = 200
COMMENT_SECONDS = 15.0
"""A quiet stream sends a comment this often, by which both sides notice that the other is gone."""
_Page = list[tuple[str, list[tuple[str, dict[str, str]]]]]


@dataclass
class StreamLimits:
    """The event streams that are open, by the name of their key, and how many there may be."""

    in_all: int
    per_key: int
    open: Counter[str] = field(default_factory=Counter)

    def check(self, key: str) -> None:
        """Refuse one more stream where that is too many. Raises: `TooManyRequests`."""
        if self.open[key] >= self.per_key:
            raise TooManyRequests(
                f"the key {key!r} has {self.open[key]} event streams open, the most that it may have; close one, or "
                "read GET /jobs/ID/events page by page"
            )
        if self.open.total() >= self.in_all:
            raise TooManyRequests(
                f"{self.in_all} event streams are open, the most that this server has; try again later, or read "
                "GET /jobs/ID/events page by page"
            )

    @contextlib.contextmanager
    def one(self, key: str) -> Iterator[None]:
        """Count a stream while it is open."""
        self.open[key] += 1
        try:
            yield
        finally:
            self.open[key] -= 1
            if not self.open[key]:
                del self.open[key]


class EventStream(StreamingResponse):
    """Server-sent events, counted while they are sent."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], limits: StreamLimits, key: str) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._limits, self._key = limits, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until it or its reader has ended."""
        with self._limits.one(self._key), contextlib.suppress(ClientDisconnect):
            await super().__call__(scope, receive, send)


async def follow(redis: Redis, job_id: str, after: str) -> AsyncIterator[bytes]:
    """Yield every event after an event id, then new ones, as text; end when the job has ended.

    The stream also ends when Redis fails. The reader reconnects with its last event id, and gets 503 until Redis
    answers again.
    """
    sent: dict[str, Progress] = {}
    progress_read_at = 0.0
    yielded_at = time.monotonic()
    try:
        while True:
            # read the state first: once it is terminal, the event of that state is already in the stream
            record = await redis.get(keys.job(job_id))
            ended = record is None or Job.model_validate_json(record).state in TERMINAL
            block = None if ended else BLOCK_MILLISECONDS
            page = cast("_Page", await redis.xread({keys.job_events(job_id): after}, count=PAGE, block=block))
            entries = page[0][1] if page else []
            text = ""
            for after, fields in entries:
                event = events.to_event(job_id, after, fields)
                text += _entry(event.model_dump_json(), event.type, after)
            if time.monotonic() - progress_read_at >= BLOCK_MILLISECONDS / 1000 and not ended:
                progress_read_at = time.monotonic()
                for progress in await _changed_progress(redis, job_id, sent):
                    text += _entry(progress.model_dump_json(), "progress")
            if not text and time.monotonic() > yielded_at + COMMENT_SECONDS:
                text = ": nothing new\n\n"
            if text:
                yield text.encode()
                yielded_at = time.monotonic()
            if ended and not entries:
                return
    except RedisError as error:
        log.warning("an event stream of job %s was ended by an error of Redis: %s", job_id, error)


def _entry(data: str, type: str, id: str | None = None) -> str:
    """An event as text; JSON has no line breaks outside strings, and none of ours inside."""
    return (f"id: {id}\n" if id is not None else "") + f"event: {type}\ndata: {data}\n\n"


async def _changed_progress(redis: Redis, job_id: str, sent: dict[str, Progress]) -> list[Progress]:
    """The progress of trials that differs from what was sent last; updates `sent`."""
    found = await cast("Awaitable[dict[str, str]]", redis.hgetall(keys.job_progress(job_id)))
    progress = {trial: Progress.model_validate_json(text) for trial, text in found.items()}
    changed = [one for trial, one in progress.items() if sent.get(trial) != one]
    sent |= progress
    return changed
