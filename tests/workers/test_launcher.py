"""A gang of real processes: they train together, react to signals together, and all end when one does."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness import ended, wait
from tests.workers import gangs
from workers import processes
from workers.outcome import Outcome


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[gangs.Running, Outcome]:
    """A gang whose rank 1 takes a second longer to end, and what came of it."""
    gang = gangs.start(tmp_path_factory.mktemp("gang"), "late")
    return gang, gang.outcome()


def test_a_gang_trains_together_and_rank_0_reports_the_result(finished: tuple[gangs.Running, Outcome]) -> None:
    gang, outcome = finished
    assert (outcome.ended, outcome.artifact) == ("finished", "rank 0 at step 40")
    for rank in (0, 1):
        assert f"[rank {rank}] threads: 2, tag: {gang.tag}\n" in gang.log


def test_rank_0_stays_until_the_others_are_done(finished: tuple[gangs.Running, Outcome]) -> None:
    assert "[rank 1] the first is there: True\n" in finished[0].log


def test_sigterm_before_the_processes_have_started_ends_them_at_once(tmp_path: Path) -> None:
    gang = gangs.start(tmp_path, "endless")
    gang.child.send(signal.SIGTERM)
    outcome = gang.outcome(seconds=10)
    assert (outcome.ended, outcome.message) == ("interrupted", "stopped on request before the training began")


def test_sigusr1_makes_a_checkpoint_and_sigterm_a_last_one_at_steps_that_all_agree_on(tmp_path: Path) -> None:
    gang = gangs.start(tmp_path, "endless")
    gang.wait_for_step(3)
    gang.child.send(signal.SIGUSR1)
    asked = [tmp_path / f"asked-{rank}" for rank in (0, 1)]
    wait(lambda: all(path.exists() and path.read_text() for path in asked), "the checkpoint", lambda: gang.log)
    assert asked[0].read_text() == asked[1].read_text()
    gang.wait_for_step(int(asked[0].read_text()) + 1)
    gang.child.send(signal.SIGTERM)
    outcome = gang.outcome(seconds=10)
    counter = (tmp_path / "counter").read_text()
    assert (outcome.ended, outcome.message) == ("interrupted", f"stopped at step {counter}")


def test_an_exception_in_rank_1_is_the_outcome_of_the_gang(tmp_path: Path) -> None:
    outcome = gangs.start(tmp_path, "raise").outcome()
    assert (outcome.ended, outcome.code, outcome.retryable) == ("failed", "internal", False)
    assert outcome.message == "ValueError: row 17 of the data has no label (see the log)"


def test_a_process_that_ends_before_it_joins_ends_the_others(tmp_path: Path) -> None:
    gang = gangs.start(tmp_path, PYTHONPATH=f"{broken(tmp_path)}:{Path.cwd()}")
    outcome = gang.outcome(seconds=30)
    assert (outcome.ended, outcome.code) == ("failed", "rank-lost")
    assert outcome.message == "a process ended before it joined the training; the log may say why"
    assert "[rank 1] " in gang.log
    assert "RuntimeError: rank 1 has no library" in gang.log


def broken(folder: Path) -> Path:
    """A folder that makes Python fail at its start in the process of rank 1."""
    site = folder / "site"
    site.mkdir()
    text = "import os\nif os.environ.get('RANK') == '1': print('RuntimeError: rank 1 has no library'); os._exit(3)\n"
    (site / "sitecustomize.py").write_text(text)
    return site


def test_two_launchers_meet_as_on_two_hosts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ("--devices", "0", "--nodes", "2", "--rendezvous", f"127.0.0.1:{port}")
    both = [gangs.start(tmp_path, words=words, log=f"log-{host}") for host in range(2)]
    found = sorted(gang.outcome().artifact or "" for gang in both)
    assert found == ["", "rank 0 at step 40"]


def test_everything_ends_with_the_supervisor(tmp_path: Path) -> None:
    script = """
import signal, sys
from pathlib import Path
from tests.workers import gangs
print(gangs.start(Path(sys.argv[1]), "endless").tag, flush=True)
signal.pause()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    tag = supervisor.stdout.readline().strip()
    log = tmp_path / "log"
    wait(lambda: (tmp_path / "counter").exists(), "the training", log.read_text)
    found = processes.tagged(tag)
    assert len(found) == 3
    supervisor.kill()
    supervisor.wait()
    psutil.wait_procs(found, timeout=5)
    assert all(map(ended, found))
