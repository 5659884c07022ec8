"""What the API answers with, the same models for the server and the client."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from mergenet_core.planning.plan import Plan
from mergenet_core.records.artifacts import Artifact
from mergenet_core.records.events import Event, Metric, Progress
from mergenet_core.records.job import Checkpoint, Job, JobState
from mergenet_core.records.record import Record

PROBLEM_TYPE = "urn:mergenet:problem:"
"""A problem's `type` is this and a stable code, one of those in `mergenet_core/errors.py` where it has one."""


class JobView(Job):
    """A job's record, and what is known of it just now."""

    progress: dict[str, Progress]
    """Where each trial was last."""
    waiting: str | None
    """Why nothing of it runs, when something waits for a worker."""
    links: dict[str, str]


class JobSummary(Record):
    """A job in a list."""

    id: str
    name: str
    labels: dict[str, str]
    owner: str
    state: JobState
    code: str
    reason: str
    trials_done: int
    trials: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    links: dict[str, str]


class JobPage(Record):
    """A page of jobs, newest first."""

    items: list[JobSummary]
    next: str | None
    """Give it as `after` for the next page; null on the last one."""


class Validation(Record):
    """What a job would do; nothing was queued."""

    name: str
    plan: Plan
    labels: dict[str, str]


class EventPage(Record):
    """A page of events, oldest first."""

    items: list[Event]
    next: str | None
    """Give it as `after` to go on, also when nothing more has happened yet."""


class MetricSeries(Record):
    """A job's numbers."""

    items: list[Metric]


class TrialCheckpoint(Checkpoint):
    """A trial's newest checkpoint."""

    trial: str


class CheckpointList(Record):
    """The checkpoints that trials would go on from."""

    items: list[TrialCheckpoint]


class ArtifactFile(Artifact):
    """A file of the result, and where to get it."""

    href: str


class ArtifactList(Record):
    """The job's result: every file with its size and hash."""

    items: list[ArtifactFile]
    about: dict[str, Any]
    """Hashes of inputs and spec, code version, environment."""


class KeyView(Record):
    """An API key, without the key itself."""

    name: str
    scopes: list[Literal["read", "submit", "admin"]]


class NewKey(KeyView):
    """A key that was just made; it is shown this once."""

    key: str


class Health(Record):
    """The service answers."""

    status: Literal["ok"] = "ok"
    version: str
