"""Trials on several hosts: Ray places them whole, one after the other, and a lost host is survived."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mergenet_core.processes import trees
from mergenet_core.records.job import Job
from mergenet_core.store import keys
from tests.harness import SOLO, Lab, document, ended, result_of, wait
from tests.shadows import write_shadows
from tests.workers import fleets
from tests.workers.fleets import Fleet
from workers import processes

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="a fleet needs Ray: install the extra `fleet`"),
]
STEPS = 300
ROUNDS = 20
STAND_IN = "tests.workers.fleet_worker"


def small(steps: int = STEPS, **more: Any) -> dict[str, Any]:
    resources = {"nodes": 2, "device": "cpu", "strategy": "ddp"} | more.pop("resources", {})
    return document(steps=steps, checkpoint_every=30) | {"resources": resources} | more


@pytest.fixture(scope="module")
def fleet(shared_lab: Lab) -> Iterator[Fleet]:
    with fleets.fleet(shared_lab) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet, shared_lab: Lab) -> float:
    """The loss of a job on two hosts that nothing disturbs."""
    fleet.want_worker()
    job = shared_lab.submit(small())
    return result_of(shared_lab.wait_for_state(job, "succeeded", seconds=120)).final_loss


def notes(lab: Lab, job: Job, attempt: int = 1) -> list[dict[str, Any]]:
    """When the stand-in for the launcher ran on each host."""
    folder = lab.settings.job_folder(job.id).path
    return [json.loads(path.read_text()) for path in folder.glob(f"{SOLO}-{attempt}-*.json")]


def endless(fleet: Fleet, lab: Lab) -> Job:
    """A job whose launchers run on both hosts until they get SIGTERM."""
    fleet.want_worker(1, STAND_IN)
    job = lab.submit(small(labels={"endless": "yes"}))
    wait(lambda: len(notes(lab, job)) == 2, "the launchers", lab.explain)
    return job


def check_second_attempt(lab: Lab, job: Job, launchers: list[psutil.Process], seconds: float) -> None:
    """The first attempt's launchers end, a second attempt's begin; then the job is cancelled."""
    wait(lambda: all(ended(process) for process in launchers), "the launchers' end", lab.explain, seconds=seconds)
    wait(lambda: len(notes(lab, job, attempt=2)) == 2, "the second attempt", lab.explain)
    lab.ask(job, "cancel")
    lab.wait_for_state(job, "cancelled", seconds=10)


def test_two_jobs_that_need_the_whole_fleet_run_in_their_order(fleet: Fleet, lab: Lab) -> None:
    fleet.want_worker(2, STAND_IN)
    for round_ in range(ROUNDS):
        jobs = [lab.submit(small()), lab.submit(small())]
        first, second = [notes(lab, lab.wait_for_state(job, "succeeded")) for job in jobs]
        for gang in (first, second):
            assert len({host["options"]["--address"] for host in gang}) == 2, f"a half-placed gang in round {round_}"
            assert len({host["options"]["--rendezvous"] for host in gang}) == 1
        assert max(host["ended"] for host in first) <= min(host["begun"] for host in second), f"round {round_}"
        assert [lab.store.get(job.id).trial(SOLO).attempt for job in jobs] == [1, 1]


def test_a_job_for_more_hosts_than_there_are_has_a_reason_and_delays_no_other(fleet: Fleet, lab: Lab) -> None:
    fleet.want_worker(2, STAND_IN)
    large = lab.submit(small(resources={"nodes": 4}))
    why = "needs 4 hosts with 1 CPU slot each, the fleet has 2 of them"
    wait(lambda: lab.store.get(large.id).trial(SOLO).reason == why, "the reason", lab.explain)
    assert [event.message for event in lab.events(large, "trial.waiting")] == [why]
    lab.wait_for_state(lab.submit(small()), "succeeded")
    lab.ask(large, "cancel")
    lab.wait_for_state(large, "cancelled", seconds=5)


def test_a_waiting_job_has_a_reason_and_pauses_at_once(fleet: Fleet, lab: Lab) -> None:
    fleet.want_worker(2, STAND_IN)
    running = lab.submit(small(labels={"endless": "yes"}))
    wait(lambda: len(notes(lab, running)) == 2, "the first job", lab.explain)
    waiting = lab.submit(small())
    why = "needs 2 hosts with 1 CPU slot each, 0 are free; position 1 in the queue"
    wait(lambda: lab.store.get(waiting.id).trial(SOLO).reason == why, why, lab.explain)
    lab.ask(waiting, "pause")
    lab.wait_for_state(waiting, "paused", seconds=5)
    lab.ask(running, "cancel")
    lab.wait_for_state(running, "cancelled", seconds=10)
    assert all("ended" in host for host in notes(lab, running)), "both launchers got SIGTERM"
    lab.resume(waiting)
    lab.wait_for_state(waiting, "succeeded")


def test_no_process_of_a_fleet_executes_folders_of_the_workers_working_directory(
    fleet: Fleet, lab: Lab, tmp_path: Path
) -> None:
    witness = write_shadows(tmp_path)
    fleet.drain()
    fleet.start_worker(STAND_IN, tmp_path)
    job = lab.wait_for_state(lab.submit(small()), "succeeded")
    assert (len(notes(lab, job)), job.trial(SOLO).attempt) == (2, 1)
    fleet.drain()
    assert not witness.exists(), witness.read_text()


def test_a_killed_driver_leaves_nothing_on_the_hosts_and_the_trial_goes_on(fleet: Fleet, lab: Lab) -> None:
    job = endless(fleet, lab)
    old = processes.tagged(f"{job.id}/{SOLO}/1/")
    launchers = [process for process in old if "tests.workers.fleet_launcher" in process.cmdline()]
    assert len(launchers) == 2
    trees.kill(process for process in old if "tests.workers.fleet_driver" in process.cmdline())
    check_second_attempt(lab, job, launchers, 10)


def test_a_host_that_does_not_answer_is_noticed(fleet: Fleet, lab: Lab) -> None:
    job = endless(fleet, lab)
    launchers = [process for process in processes.tagged(f"{job.id}/{SOLO}/1/") if "--address" in process.cmdline()]
    launchers[0].parent().suspend()  # the actor: its host is there, and says nothing
    wait(lambda: lab.store.get(job.id).trial(SOLO).failures == 1, "the failure's record", lab.explain)
    reason = lab.store.get(job.id).trial(SOLO).reason
    assert reason is not None
    assert reason.endswith(f"did not answer for {fleets.SILENCE_SECONDS} s")
    check_second_attempt(lab, job, launchers, 20)


def test_a_drained_fleet_worker_hands_its_trial_back_after_a_checkpoint(
    fleet: Fleet, lab: Lab, undisturbed: float
) -> None:
    fleet.want_worker(1)
    job = lab.submit(small())
    lab.wait_for_checkpoint(job)
    fleet.drain()
    handed = lab.store.get(job.id).trial(SOLO)
    assert (handed.state, handed.failures) == ("queued", 0), lab.explain()
    fleet.want_worker(1)
    job = lab.wait_for_state(job, "succeeded", seconds=120)
    assert lab.events(job, "trial.resumed")[0].data["step"] > 0
    assert result_of(job).final_loss == pytest.approx(undisturbed, abs=1e-6)


def test_a_host_killed_in_mid_training_ends_in_a_succeeded_job_with_the_same_loss(
    fleet: Fleet, lab: Lab, undisturbed: float
) -> None:
    fleet.want_worker(1)
    job = lab.submit(small())
    lab.wait_for_checkpoint(job)
    running = {process: process.cmdline() for process in lab.processes(job)}
    ranks = [process for process, words in running.items() if "workers.gang.rank" in words]
    words = next(words for words in running.values() if "workers.gang.launcher" in words)
    lost = words[words.index("--address") + 1]
    before = time.monotonic()
    fleet.lose(lost)
    gone = wait(lambda: all(ended(rank) for rank in ranks) and time.monotonic(), "the gang's end", lab.explain, 20)
    wait(lambda: lab.store.get(job.id).trial(SOLO).failures == 1, "the failure's record", lab.explain, 20)
    noticed = time.monotonic()
    trial = lab.store.get(job.id).trial(SOLO)
    assert trial.reason is not None
    assert lost in trial.reason
    print(f"all ranks ended after {gone - before:.1f} s, recorded after {noticed - before:.1f} s: {trial.reason}")
    fleet.start("node")
    job = lab.wait_for_state(job, "succeeded", seconds=120)
    assert job.trial(SOLO).attempt == 2
    assert lab.events(job, "trial.resumed")[0].data["step"] > 0
    assert result_of(job).final_loss == pytest.approx(undisturbed, abs=1e-6)
    assert not any(psutil.pid_exists(process.pid) for process in lab.processes(job))


def test_every_trial_of_a_job_runs_on_the_fleet_and_the_report_is_made_there_too(fleet: Fleet, lab: Lab) -> None:
    fleet.want_worker(1)
    job = lab.wait_for_state(lab.submit(small(steps=60), solo=False), "succeeded", seconds=300)
    assert {trial.id: trial.state for trial in job.trials} == dict.fromkeys(
        ("source", "transfer-0", "control-0", "finalize"), "succeeded"
    )
    assert job.artifact is not None
    assert (lab.settings.job_folder(job.id).path / job.artifact / "manifest.json").exists()
    assert lab.store.redis.zcard(keys.FLEET_QUEUE) == 0, "nobody is left in the line"
