"""Events, metrics and progress of a running job."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from mergenet_core.records.record import Record


class Progress(Record):
    """How far a running trial is; only the newest is kept."""

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
    """Something that happened in a job."""

    id: str
    """Its id in the stream; give it as `Last-Event-ID` to read on after it."""
    ts: datetime
    job: str
    trial: str | None = None
    attempt: int | None = None
    type: str
    """Such as `job.state`, `trial.state`, `checkpoint.published`, `progress`."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str
    data: dict[str, JsonValue] = {}


class Metric(Record):
    """One measured number."""

    step: int
    ts: datetime
    name: str
    value: float
    split: Literal["train", "validation", "test"]
    trial: str
    attempt: int
