"""Events, metrics and progress of a running job, as bounded Redis streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.typing import EncodableT, FieldT

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.events import Event, Metric, Progress
from mergenet_core.records.job import Job
from mergenet_core.records.record import now
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.store import keys

EVENTS_KEPT = 10_000
METRICS_KEPT = 200_000
"""Entries of a job's streams; older ones are in the job's folder as JSON lines."""


def add_changes(pipe: Pipeline, old: Job | None, new: Job) -> None:
    """Append an event for every state that differs between two records of a job."""
    before = {trial.id: trial for trial in old.trials} if old else {}
    for trial in new.trials:
        was = before.get(trial.id)
        if was is None or was.state == trial.state:
            continue
        reason = trial.reason or ""
        add_event(
            pipe,
            new.id,
            "trial.state",
            f"{trial.id} is {trial.state}" + (f": {reason}" if reason else ""),
            level="error" if trial.state == "failed" else "info",
            attempt=new.attempt(trial),
            data={"state": trial.state, "worker": trial.worker},
        )
    if old is None or (old.state, old.reason) != (new.state, new.reason):
        add_event(
            pipe,
            new.id,
            "job.state",
            f"{new.state}: {new.reason}",
            level="error" if new.state == "failed" else "info",
            data={"state": new.state, "code": new.code, "reason": new.reason},
        )


def add_event(
    redis: Redis | Pipeline,
    job_id: str,
    type: str,
    message: str,
    *,
    level: str = "info",
    attempt: AttemptRef | None = None,
    data: JsonObject | None = None,
) -> None:
    """Append an event to a job's stream; with `attempt`, one of that attempt."""
    entry: dict[FieldT, EncodableT] = {
        "ts": now().isoformat(),
        "type": type,
        "level": level,
        "message": message,
        "data": json.dumps(data or {}),
    }
    if attempt is not None:
        entry |= {"trial": attempt.trial_id, "attempt": str(attempt.number)}
    redis.xadd(keys.job_events(job_id), entry, maxlen=EVENTS_KEPT, approximate=True)


def events(redis: Redis, job_id: str, *, after: str | None = None, limit: int = 200) -> list[Event]:
    """A page of a job's events, oldest first, beginning after the id `after`."""
    found = redis.xrange(keys.job_events(job_id), min=f"({after}" if after else "-", count=limit)
    return [to_event(job_id, entry_id, fields) for entry_id, fields in cast("list[tuple[str, dict[str, str]]]", found)]


def to_event(job_id: str, entry_id: str, fields: Mapping[str, str]) -> Event:
    """An event from its stream entry."""
    return Event.model_validate(
        {**fields, "id": entry_id, "job": job_id, "data": json.loads(fields["data"])}, strict=False
    )


def add_metrics(redis: Redis, job_id: str, metrics: Iterable[Metric]) -> None:
    """Append measured numbers, all in one round trip."""
    with redis.pipeline(transaction=False) as pipe:
        for metric in metrics:
            entry: dict[FieldT, EncodableT] = {"json": metric.model_dump_json()}
            pipe.xadd(keys.job_metrics(job_id), entry, maxlen=METRICS_KEPT, approximate=True)
        pipe.execute()


def metrics(
    redis: Redis,
    job_id: str,
    *,
    name: str | None = None,
    trial: str | None = None,
    step_from: int = 0,
    step_to: int | None = None,
    resolution: int = 1000,
) -> list[Metric]:
    """A job's metrics in a range of steps, thinned to every k-th point and the last.

    At most `resolution` points of a series are kept, besides the last. A step that was measured by two attempts appears
    once, as the newer attempt measured it.
    """
    series: dict[tuple[str, str, str], dict[int, Metric]] = {}
    for _, fields in cast("list[tuple[str, dict[str, str]]]", redis.xrange(keys.job_metrics(job_id))):
        metric = Metric.model_validate_json(fields["json"])
        wanted = (name is None or metric.name == name) and (trial is None or metric.trial == trial)
        if wanted and metric.step >= step_from and (step_to is None or metric.step <= step_to):
            points = series.setdefault((metric.trial, metric.split, metric.name), {})
            if metric.step not in points or metric.attempt >= points[metric.step].attempt:
                points[metric.step] = metric
    return [metric for points in series.values() for metric in _thinned(points, resolution)]


def set_progress(redis: Redis, job_id: str, progress: Progress) -> None:
    """Store the newest progress of a trial."""
    redis.hset(keys.job_progress(job_id), progress.trial, progress.model_dump_json())


def progress(redis: Redis, job_id: str) -> dict[str, Progress]:
    """The newest progress of each trial."""
    found = cast("dict[str, str]", redis.hgetall(keys.job_progress(job_id)))
    return {trial: Progress.model_validate_json(text) for trial, text in found.items()}


def _thinned(points: Mapping[int, Metric], resolution: int) -> list[Metric]:
    ordered = [points[step] for step in sorted(points)]
    stride = max(1, -(-len(ordered) // resolution))
    return [metric for index, metric in enumerate(ordered) if index % stride == 0 or index == len(ordered) - 1]
