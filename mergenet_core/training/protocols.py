"""What a trial needs of the process that runs it: somewhere to report to, and someone to ask whether to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from mergenet_core.records.job import Checkpoint

COLLECTIVE_SECONDS = "MERGENET_COLLECTIVE_SECONDS"
"""Environment variable: how long a process waits for the others in an exchange before it gives up."""


class Reporter(Protocol):
    """Where a trial says what happens."""

    def event(self, type: str, message: str, *, level: str = "info", **data: object) -> None:
        """Something happened."""

    def metric(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Numbers were measured."""

    def progress(self, step: int, steps: int, *, loss: float, metric: float | None, eta_seconds: float | None) -> None:
        """A step was done; called at every one."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is on disk. Raises: `StaleAttempt` when a newer attempt owns the trial."""


class Control(Protocol):
    """Asked at every step's end what the outside wants."""

    def requested(self) -> Literal["stop", "checkpoint"] | None:
        """`stop`: publish a checkpoint and raise `Interrupted`; `checkpoint`: publish one and go on."""


class Interrupted(Exception):
    """A trial stopped because it was asked to, after it published `checkpoint`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(f"stopped at step {checkpoint.step}")
        self.checkpoint = checkpoint
