"""What a running job reports: events, metrics and progress."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from mergenet_core.records.record import Record


class Progress(Record):
    """Where a running trial is; overwritten all the time, never history."""

    trial: str
    attempt: int
    step: int
    steps: int
    loss: float | None = None
    metric: float | None = None
    """Newest validation metric."""
    eta_seconds: float | None = None
    """Until the trial's last step."""
    at: datetime


class Event(Record):
    """Something that happened to a job."""

    id: str
    """Its place in the stream; give it as `Last-Event-ID` to go on after it."""
    ts: datetime
    job: str
    trial: str | None = None
    attempt: int | None = None
    type: str
    """Such as `job.state`, `trial.state`, `checkpoint.published`, `progress`."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str
    data: dict[str, Any] = {}


class Metric(Record):
    """One measured number."""

    step: int
    ts: datetime
    name: str
    value: float
    split: Literal["train", "validation", "test"]
    trial: str
    attempt: int
