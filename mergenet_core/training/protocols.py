"""What a trial needs from the process that runs it: a reporter, and requests to stop or to publish a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import JsonValue

from mergenet_core.records.job import Checkpoint

REQUESTS: tuple[Literal["checkpoint", "stop"] | None, ...] = (None, "checkpoint", "stop")
"""What can be requested of a process; if processes receive different requests, the last of these counts for all."""
COLLECTIVE_SECONDS = "MERGENET_COLLECTIVE_SECONDS"
"""Environment variable: seconds that a process waits for the others in an exchange before it fails."""


class Reporter(Protocol):
    """Receives what a trial reports."""

    def event(self, type: str, message: str, *, level: str = "info", **data: JsonValue) -> None:
        """An event, such as a checkpoint that was refused."""

    def metric(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Metrics of a split at a step."""

    def begin_step(self) -> None:
        """A step begins; until `progress` follows, nothing but the step is under way."""

    def progress(self, step: int, steps: int, *, loss: float, metric: float | None, eta_seconds: float | None) -> None:
        """The state after a step; called after every one."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A checkpoint was published. Raises: `StaleAttempt` if a newer attempt owns the trial."""


class Control(Protocol):
    """Requests from outside, read after every step."""

    def requested(self) -> Literal["stop", "checkpoint"] | None:
        """The pending request: `stop` publishes a checkpoint and raises `Interrupted`, `checkpoint` publishes one."""


@dataclass(frozen=True)
class AttemptContext:
    """The number of a trial's attempt, and the process that runs it."""

    number: int
    reporter: Reporter
    control: Control


class Interrupted(Exception):
    """A trial stopped on request, after it published what it has done: a checkpoint, or a part of its preparation."""

    def __init__(self, message: str, checkpoint: Checkpoint | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint
