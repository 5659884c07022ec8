"""Processes of an attempt: they die with their parent, are found by their tag, and are killed as a whole."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mergenet_core.processes import trees
from mergenet_core.records.attempt import AttemptRef
from tests.harness import wait
from workers import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def tag() -> str:
    return processes.attempt_tag(AttemptRef(secrets.token_hex(4), "control-0", 1), "worker")


def start(run: Callable[[], None] | None, tag: str, log: Path, command: list[str] = SLEEP) -> processes.AttemptProcess:
    reader, writer = os.pipe()
    os.close(reader)
    return processes.start(run, command, environment={processes.TAG: tag}, log=log, fd=writer)


def test_a_program_and_all_it_starts_are_found_by_their_tag(tag: str, tmp_path: Path) -> None:
    spawn = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], start_new_session=True); time.sleep(60)"
    child = start(None, tag, tmp_path / "log", [sys.executable, "-c", spawn, *SLEEP])
    try:
        wait(lambda: len(processes.tagged(tag)) == 2, "the child and its own child", str)
        assert {process.pid for process in child.tree()} == {process.pid for process in processes.tagged(tag)}
        assert len(processes.tagged(tag.rsplit("/", 2)[0] + "/")) == 2
        assert processes.tagged(tag.replace("/1/", "/2/")) == []
    finally:
        found = processes.tagged(tag)
        trees.kill(found)
    assert child.wait(5) == -signal.SIGKILL
    psutil.wait_procs(found, timeout=5)
    assert processes.tagged(tag) == []


def test_a_fork_is_found_by_its_tag_too(tag: str, tmp_path: Path) -> None:
    child = start(signal.pause, tag, tmp_path / "log")
    try:
        wait(lambda: [process.pid for process in processes.tagged(tag)] == [child.pid], "the fork", str)
        assert [process.pid for process in processes.tagged(tag.rsplit("/", 2)[0] + "/")] == [child.pid]
        assert processes.tagged(tag.replace("/1/", "/2/")) == []
    finally:
        trees.kill(child.tree())
    assert child.wait(5) == -signal.SIGKILL


def test_a_signal_that_comes_too_early_waits_for_its_handler(tag: str, tmp_path: Path) -> None:
    script = (
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); signal.pthread_sigmask(1, [15]); sys.exit(3)"
    )
    child = start(None, tag, tmp_path / "log", [sys.executable, "-c", script])
    child.send(signal.SIGTERM)
    assert child.wait(20) == 7


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = """
import signal, sys
from pathlib import Path
from workers import processes
environment = {processes.TAG: "job/trial/1/worker"}
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


def test_an_error_in_a_fork_ends_the_fork_alone(tag: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("too bad")

    child = start(fail, tag, tmp_path / "log")
    assert child.wait(10) == 1
    assert "ValueError: too bad" in (tmp_path / "log").read_text()
