"""The base of all records."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Data that is passed between processes: it cannot be changed, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)
