"""Process trees: tied to their parent, found by their mark, killed whole, and what the worker does without one."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mergenet_core.processes import trees
from mergenet_core.records.attempt import AttemptRef
from tests.harness import wait
from workers import processes
from workers.outcome import Outcome, receive, send
from workers.supervisor import _silent

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def mark() -> str:
    return processes.mark(AttemptRef(secrets.token_hex(4), "control-0", 1), "worker")


def start(run: object, mark: str, log: Path, command: list[str] = SLEEP) -> processes.Child:
    reader, writer = os.pipe()
    os.close(reader)
    return processes.start(run, command, environment={processes.MARK: mark}, log=log, fd=writer)  # type: ignore[arg-type]


def test_a_program_and_all_it_starts_are_found_by_their_mark(mark: str, tmp_path: Path) -> None:
    spawn = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], start_new_session=True); time.sleep(60)"
    child = start(None, mark, tmp_path / "log", [sys.executable, "-c", spawn, *SLEEP])
    try:
        wait(lambda: len(processes.marked(mark)) == 2, "the child and its own child", str)
        assert {process.pid for process in child.tree()} == {process.pid for process in processes.marked(mark)}
        assert len(processes.marked(mark.rsplit("/", 2)[0] + "/")) == 2
        assert processes.marked(mark.replace("/1/", "/2/")) == []
    finally:
        found = processes.marked(mark)
        trees.kill(found)
    assert child.wait(5) == -signal.SIGKILL
    psutil.wait_procs(found, timeout=5)
    assert processes.marked(mark) == []


def test_a_fork_is_found_by_its_mark_too(mark: str, tmp_path: Path) -> None:
    child = start(signal.pause, mark, tmp_path / "log")
    try:
        wait(lambda: [process.pid for process in processes.marked(mark)] == [child.pid], "the fork", str)
        assert [process.pid for process in processes.marked(mark.rsplit("/", 2)[0] + "/")] == [child.pid]
        assert processes.marked(mark.replace("/1/", "/2/")) == []
    finally:
        trees.kill(child.tree())
    assert child.wait(5) == -signal.SIGKILL


def test_a_signal_that_comes_too_early_waits_for_its_handler(mark: str, tmp_path: Path) -> None:
    script = (
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); signal.pthread_sigmask(1, [15]); sys.exit(3)"
    )
    child = start(None, mark, tmp_path / "log", [sys.executable, "-c", script])
    child.send(signal.SIGTERM)
    assert child.wait(20) == 7


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = """
import signal, sys
from pathlib import Path
from workers import processes
environment = {processes.MARK: "job/trial/1/worker"}
child = processes.start(signal.pause, [], environment=environment, log=Path(sys.argv[1]), fd=1)
print(child.pid, flush=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running()


def test_an_error_in_a_fork_ends_the_fork_alone(mark: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("too bad")

    child = start(fail, mark, tmp_path / "log")
    assert child.wait(10) == 1
    assert "ValueError: too bad" in (tmp_path / "log").read_text()


def test_an_outcome_passes_through_the_pipe_and_garbage_does_not() -> None:
    outcome = Outcome(ended="failed", code="out-of-memory", message="x" * 4000)
    reader, writer = os.pipe()
    send(writer, outcome)
    assert receive(reader) == outcome
    reader, writer = os.pipe()
    os.write(writer, b"half a docum")
    assert receive(reader) is None


@pytest.mark.parametrize(
    ("status", "stopped", "memory_ran_out", "expected"),
    [
        (-9, False, True, ("failed", "out-of-memory", False)),
        (-9, False, False, ("failed", "worker-lost", True)),
        (-11, False, True, ("failed", "worker-lost", True)),
        (1, False, False, ("failed", "worker-lost", True)),
        (-9, True, False, ("interrupted", "", False)),
    ],
)
def test_a_silent_end_is_told_by_its_circumstances(
    status: int, stopped: bool, memory_ran_out: bool, expected: tuple[str, str, bool]
) -> None:
    outcome = _silent(status, stopped=stopped, memory_ran_out=memory_ran_out)
    assert (outcome.ended, outcome.code, outcome.retryable) == expected


def test_the_kernels_count_of_memory_kills_can_be_read() -> None:
    assert processes.memory_kills() >= 0
