"""Starts the launcher as the supervisor does, with the tiny training of `gang_rank`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from mergenet_core.processes.command import python_command
from mergenet_core.records.attempt import AttemptRef
from tests.harness import ended, wait
from workers import processes
from workers.outcome import OUTCOME_FD, Outcome, receive

SILENCE_SECONDS = 5
FOLDER, FAULT = "GANG_FOLDER", "GANG_FAULT"
"""Environment variables of `gang_rank`: where it writes, and what goes wrong."""
_ROOT = Path(__file__).parents[2]
LIMITS = {
    "MERGENET_SILENCE_SECONDS": str(SILENCE_SECONDS),
    "MERGENET_STALL_SECONDS": "60",
    "OMP_NUM_THREADS": "4",
    "MKL_NUM_THREADS": "4",
}


@dataclass
class Running:
    """A launcher and what it started."""

    folder: Path
    log_path: Path
    child: processes.AttemptProcess
    reader: int
    tag: str

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def alive(self) -> list[psutil.Process]:
        return [process for process in processes.tagged(self.tag) if not ended(process)]

    def ranks(self) -> list[psutil.Process]:
        """The two processes of the gang."""
        below = wait(
            lambda: found if len(found := [p for p in self.alive() if p.pid != self.child.pid]) == 2 else None,
            "two processes",
            lambda: self.log,
        )
        return sorted(below, key=lambda process: process.environ()["RANK"])

    def wait_for_step(self, step: int) -> None:
        """Until the checkpoint is that far."""
        counter = self.folder / "counter"
        wait(lambda: counter.exists() and int(counter.read_text()) >= step, f"step {step}", lambda: self.log)

    def outcome(self, seconds: float = 60) -> Outcome:
        """What the launcher reported, once it has ended; nothing may be left of the gang."""
        assert self.child.wait(seconds) == 0, self.log
        assert self.alive() == []
        found = receive(self.reader)
        assert found is not None, self.log
        return found


def start(
    folder: Path,
    how: str = "",
    *,
    attempt: int = 1,
    log: str = "log",
    words: tuple[str, ...] = ("--devices", "0,1"),
    **environment: str,
) -> Running:
    """Start a gang of two; `how` names the fault of rank 1. Gangs with the same folder are of the same attempt."""
    ref = AttemptRef(hashlib.sha256(str(folder).encode()).hexdigest()[:8], "control-0", attempt)
    tag = processes.attempt_tag(ref, f"worker-{log}")
    reader, writer = os.pipe()
    own = {processes.TAG: tag, OUTCOME_FD: str(writer), FOLDER: str(folder), FAULT: how}
    child = processes.start(
        None,
        python_command("tests.workers.gang_launcher", str(ref), *words),
        environment=LIMITS | {"PYTHONPATH": str(_ROOT)} | own | environment,
        log=folder / log,
        fd=writer,
    )
    os.close(writer)
    return Running(folder, folder / log, child, reader, tag)
