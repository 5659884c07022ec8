"""One process of a gang is killed, stopped or hangs: the whole gang ends soon, and the next attempt goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from mergenet_core.processes import trees
from mergenet_core.records.job import Job
from tests.harness import SOLO, Lab, document, result_of
from tests.workers import gangs

pytestmark = pytest.mark.faults


def resumes(folder: Path) -> None:
    """The next attempt goes on from the newest checkpoint and finishes."""
    newest = (folder / "counter").read_text()
    assert 0 < int(newest) < 40
    outcome = gangs.start(folder, attempt=2).outcome()
    assert (outcome.ended, outcome.artifact) == ("finished", "rank 0 at step 40")
    assert [(folder / f"resumed-2-{rank}").read_text() for rank in (0, 1)] == [newest, newest]


def test_a_killed_process_ends_the_gang_and_the_next_attempt_resumes(tmp_path: Path) -> None:
    gang = gangs.start(tmp_path, "kill")
    outcome = gang.outcome()
    assert (outcome.ended, outcome.code, outcome.retryable) == ("failed", "rank-lost", True)
    assert outcome.message.startswith("rank 1 (process ")
    assert "ended by signal SIGKILL" in outcome.message
    resumes(tmp_path)


def test_a_stopped_process_is_noticed_by_its_silence_and_the_next_attempt_resumes(tmp_path: Path) -> None:
    outcome = gangs.start(tmp_path, "stop").outcome()
    assert (outcome.code, outcome.retryable) == ("rank-lost", True)
    assert outcome.message.startswith("rank 1 ")
    assert outcome.message.endswith(f"sent no heartbeat for {gangs.SILENCE_SECONDS} s")
    resumes(tmp_path)


def test_a_process_that_hangs_but_sends_heartbeats_ends_the_gang_too(tmp_path: Path) -> None:
    # longer than the imports, which hold the interpreter and so delay heartbeats
    gang = gangs.start(tmp_path, "hang", MERGENET_STALL_SECONDS="8")
    outcome = gang.outcome()
    assert (outcome.code, outcome.retryable) == ("rank-lost", True)
    assert outcome.message == "the training did nothing for 8 s since step 5"
    resumes(tmp_path)


def test_a_killed_rank_0_is_named_as_well(tmp_path: Path) -> None:
    gang = gangs.start(tmp_path, "endless")
    gang.wait_for_step(3)
    gang.ranks()[0].kill()
    assert "rank 0 (process " in gang.outcome(seconds=15).message


def test_a_killed_launcher_ends_its_processes(tmp_path: Path) -> None:
    gang = gangs.start(tmp_path, "endless")
    gang.wait_for_step(3)
    ranks = gang.ranks()
    trees.kill(gang.child.tree()[:1])
    assert gang.child.wait(5) == -9
    deadline = time.monotonic() + 5
    while gang.alive():
        assert time.monotonic() < deadline, ranks
        time.sleep(0.05)


STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
STEPS = 400


@pytest.fixture(scope="module")
def undisturbed(shared_lab: Lab) -> Callable[[str], float]:
    """The loss of a job on two devices that nothing disturbs, by strategy."""
    shared_lab.want_workers(1)

    @cache
    def loss(strategy: str) -> float:
        return result_of(shared_lab.wait_for_state(shared_lab.submit(small(strategy)), "succeeded", 240)).final_loss

    return loss


def small(strategy: str) -> dict[str, Any]:
    resources = {"devices": 2, "strategy": strategy, "device": "cpu"}
    return document(steps=STEPS, checkpoint_every=40) | {"resources": resources}


def ranks(lab: Lab, job: Job) -> list[psutil.Process]:
    """The two training processes of a job's trial."""
    found = [process for process in lab.processes(job) if "workers.gang.rank" in process.cmdline()]
    assert len(found) == 2, lab.explain()
    return sorted(found, key=lambda process: process.environ()["RANK"])


ENDS = [(strategy, how) for strategy in STRATEGIES for how in ("killed", "stopped", "drained")]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "how"), [*ENDS, ("ddp", "launcher stopped")])
def test_a_job_on_two_devices_survives_with_the_loss_of_an_undisturbed_one(
    lab: Lab, undisturbed: Callable[[str], float], strategy: str, how: str
) -> None:
    expected = undisturbed(strategy)
    lab.want_workers(2)
    job = lab.submit(small(strategy))
    lab.wait_for_checkpoint(job)
    first, second = ranks(lab, job)
    if how == "killed":
        second.kill()
    elif how == "stopped":
        first.suspend()
    elif how == "launcher stopped":
        launcher = first.parent()
        assert launcher is not None
        assert "workers.gang.launcher" in launcher.cmdline()
        launcher.suspend()
    else:
        _, _, worker = lab.chain(job)
        worker.terminate()
    job = lab.wait_for_state(job, "succeeded", seconds=240)
    assert (job.trial(SOLO).attempt, job.trial(SOLO).failures) == (2, 0 if how == "drained" else 1)
    assert len(lab.events(job, "trial.resumed")) == 1
    assert lab.processes(job) == []
    assert result_of(job).final_loss == pytest.approx(expected, abs=1e-6)
