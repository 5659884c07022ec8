"""How a training process tells its supervisor what became of it: one JSON document through a pipe.

A pipe, not a file: it works when the disk is full, and no old attempt's word can be mistaken for a new one's.
"""

from __future__ import annotations

import contextlib
import os
from typing import Literal

from pydantic import ValidationError

from mergenet_core.records.job import TrialResult
from mergenet_core.records.record import Record

MESSAGE_LIMIT = 4000
_PIPE_BYTES = 65536


class Outcome(Record):
    """The end of an attempt as the training process saw it."""

    ended: Literal["finished", "interrupted", "failed"]
    result: TrialResult | None = None
    artifact: str | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False
    world_rank: int | None = None
    """Of several processes: the first of those that it speaks for."""


def failed(code: str, message: str, *, retryable: bool = False) -> Outcome:
    """The end of an attempt that went wrong, its sentence cut where it would not go through the pipe at once."""
    return Outcome(ended="failed", code=code, message=message[:MESSAGE_LIMIT], retryable=retryable)


def send(descriptor: int, outcome: Outcome) -> None:
    """Write the outcome; a supervisor that is gone has no use for it."""
    with contextlib.suppress(OSError), os.fdopen(descriptor, "wb") as pipe:
        pipe.write(outcome.model_dump_json().encode())


def receive(descriptor: int) -> Outcome | None:
    """Read the outcome of a process that has ended; None when it ended without a word."""
    os.set_blocking(descriptor, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, _PIPE_BYTES):
            text += part
    with contextlib.suppress(ValidationError):
        return Outcome.model_validate_json(text)
    return None
