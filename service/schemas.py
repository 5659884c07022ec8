"""The API's response models, shared by server and client."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from mergenet_core.planning.plan import Plan
from mergenet_core.records.artifacts import Artifact
from mergenet_core.records.events import Event, Metric, Progress
from mergenet_core.records.job import Checkpoint, Job, JobState
from mergenet_core.records.provenance import Provenance
from mergenet_core.records.record import Record

PROBLEM_TYPE = "urn:mergenet:problem:"
"""Prefix of a problem's `type`; the error's code follows it, such as those in `mergenet_core/errors.py`."""


class JobView(Job):
    """A job's record with its progress and its position in the queue."""

    progress: dict[str, Progress]
    """The latest progress of each trial."""
    queue_position: int | None
    """Position in the queue of the job's first queued trial, counted from 1; null if no trial is queued. The trials of
    the oldest job are first, whatever they are, and in a job those that most others need."""
    waiting_reason: str | None
    """Why no trial of the job is running; null if one is, or if none waits."""
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
    """Value of `after` for the next page; null on the last one."""


class Validation(Record):
    """The plan of a job that was checked but not queued."""

    name: str
    plan: Plan
    labels: dict[str, str]


class EventPage(Record):
    """A page of events, oldest first."""

    items: list[Event]
    next: str | None
    """Value of `after` for the events that follow, even if there are none yet."""


class MetricSeries(Record):
    """Measured numbers of a job."""

    items: list[Metric]


class TrialCheckpoint(Checkpoint):
    """A trial's newest checkpoint."""

    trial: str


class CheckpointList(Record):
    """The checkpoints that trials would resume from."""

    items: list[TrialCheckpoint]


class ArtifactFile(Artifact):
    """A file of the result, and the path to download it from."""

    href: str


class ArtifactList(Record):
    """The files of a job's result, with size and hash."""

    items: list[ArtifactFile]
    about: Provenance
    """What the result was made from."""


class Leftover(Record):
    """A folder of the service's home that belongs to no job."""

    job: str
    """Its name: the id that the job had."""
    bytes: int


class KeyView(Record):
    """An API key, without the key itself."""

    name: str
    scopes: list[Literal["read", "submit", "admin"]]


class NewKey(KeyView):
    """A new key; the key itself is shown only here."""

    key: str


class Health(Record):
    """The answer of a health check."""

    status: Literal["ok"] = "ok"
    version: str
