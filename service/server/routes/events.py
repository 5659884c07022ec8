"""What a job reports: events as pages and as a stream, metrics, logs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from mergenet_core.errors import FieldError, NotFound, SpecInvalid
from mergenet_core.records.api_keys import ApiKey
from mergenet_core.records.job import Job, Trial
from mergenet_core.store import events
from service.schemas import EventPage, MetricSeries
from service.server import event_stream
from service.server.auth import needs
from service.server.dependencies import Ctx, JobId
from service.server.file_response import file_response
from service.server.problem_details import responses

router = APIRouter(prefix="/jobs/{job_id}", tags=["watch"])

EVENT_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"
TAIL_BYTES = 64 << 10


@router.get("/events", dependencies=[needs("read")], responses={**responses(401, 403, 404, 422, 503)}, summary="Events")
def get_events(
    context: Ctx,
    job_id: JobId,
    after: Annotated[str | None, Query(pattern=EVENT_ID, description="The `next` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> EventPage:
    """A page of a job's events, oldest first."""
    context.store.get(job_id)
    found = events.events(context.redis, job_id, after=after, limit=limit)
    return EventPage(items=found, next=found[-1].id if found else after)


def _exists(context: Ctx, job_id: JobId) -> None:
    context.store.get(job_id)


@router.get(
    "/events/stream",
    # checked before the stream begins, while the response can still be a problem
    dependencies=[needs("read"), Depends(_exists)],
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **responses(401, 403, 404, 422, 429, 503),
    },
    response_class=Response,
    summary="Events as they happen",
)
async def stream_events(
    context: Ctx,
    key: Annotated[ApiKey, needs("read")],
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(pattern=EVENT_ID, description="Start after this event.")] = None,
) -> Response:
    """Server-sent events: the job's past events, then new ones as they happen; `progress` at most once a second.

    The stream ends when the job has ended and all its events were sent. `progress` has no id and is not repeated.
    """
    context.streams.check(key.name)
    content = event_stream.follow(context.stream_redis, job_id, last_event_id or "0")
    return event_stream.EventStream(content, context.streams, key.name)


@router.get(
    "/metrics", dependencies=[needs("read")], responses={**responses(401, 403, 404, 422, 503)}, summary="Metrics"
)
def get_job_metrics(
    context: Ctx,
    job_id: JobId,
    name: Annotated[str | None, Query(max_length=100, description="Such as `loss` or `accuracy`.")] = None,
    trial: Annotated[str | None, Query(max_length=200)] = None,
    step_from: Annotated[int, Query(ge=0)] = 0,
    step_to: Annotated[int | None, Query(ge=0)] = None,
    resolution: Annotated[int, Query(ge=2, le=10_000, description="Largest number of points in a series.")] = 1000,
) -> MetricSeries:
    """Measured numbers in a range of steps, thinned to at most `resolution` points a series."""
    job = context.store.get(job_id)
    if trial is not None:
        _trial(job, trial)
    found = events.metrics(
        context.redis,
        job_id,
        name=name,
        trial=trial,
        step_from=step_from,
        step_to=step_to,
        resolution=resolution,
    )
    return MetricSeries(items=found)


@router.get(
    "/logs",
    dependencies=[needs("read")],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **responses(401, 403, 404, 416, 422, 503)},
    summary="Logs",
)
def get_logs(
    context: Ctx,
    job_id: JobId,
    request: Request,
    trial: Annotated[str | None, Query(max_length=200, description="Default: the latest trial.")] = None,
    attempt: Annotated[int | None, Query(ge=1, description="Default: the newest.")] = None,
    tail: Annotated[int, Query(ge=1, le=16 << 20, description="Bytes from the end.")] = TAIL_BYTES,
) -> Response:
    """The log of an attempt's processes: its last bytes, or any bytes with a `Range` header."""
    job = context.store.get(job_id)
    path = _log(context, job, trial, attempt)
    if "range" in request.headers:
        return file_response(request, path, media_type="text/plain; charset=utf-8")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - tail))
        content = file.read(tail)
    return Response(content, media_type="text/plain; charset=utf-8", headers={"X-Log-Bytes": str(size)})


def _log(context: Ctx, job: Job, trial_id: str | None, attempt: int | None) -> Path:
    folder = context.settings.job_folder(job.id)
    begun = [trial for trial in job.trials if trial.attempt > 0]
    if trial_id is not None:
        trial = _trial(job, trial_id)
    elif begun:
        running = [trial for trial in begun if trial.state in ("starting", "running")]
        trial = (running or begun)[-1]
    else:
        raise NotFound(f"there is no log yet: the job is {job.state} ({job.reason})")
    number = attempt or trial.attempt
    if number > trial.attempt or not folder.log(trial.id, number).is_file():
        raise NotFound(f"{trial.id} has no log of attempt {number}; its newest attempt is {trial.attempt}")
    return folder.log(trial.id, number)


def _trial(job: Job, trial_id: str) -> Trial:
    try:
        return job.trial(trial_id)
    except KeyError:
        known = ", ".join(trial.id for trial in job.trials)
        message = f"trial {trial_id!r} is not one of this job's: {known}"
        raise SpecInvalid(message, errors=(FieldError("?trial", message),)) from None
