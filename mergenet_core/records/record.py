"""What every record is: frozen data that crosses a process."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Data that crosses a process: frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)
