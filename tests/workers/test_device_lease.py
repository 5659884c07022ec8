"""Trials wait for a host's devices with a reason, never share one, and release them when they end, however they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from mergenet_core.processes import trees
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.records.workers import DeviceState
from mergenet_core.store import device_leases, rq_queue, worker_registry
from tests.harness import SOLO, Lab, document, ended, wait
from workers import device_lease, processes
from workers.attempt import Attempt

LEDGER = socket.gethostname()


@pytest.fixture
def narrow(shared_lab: Lab) -> Lab:
    """Two workers on a host with two slots, kept from test to test."""
    shared_lab.want_workers(2, MERGENET_CPU_SLOTS="2")
    return shared_lab


def listening(lab: Lab) -> set[int]:
    """Process ids of the workers whose heartbeats are not too old."""
    return {int(worker.name.split("-")[-2]) for worker in worker_registry.workers(lab.store.redis)}


def listing(lab: Lab) -> list[DeviceState]:
    return device_leases.listing(lab.store.redis, worker_registry.workers(lab.store.redis))


def are(lab: Lab, *wanted: str) -> None:
    """Wait until the devices are in these states."""
    wait(lambda: sorted(one.state for one in listing(lab)) == sorted(wanted), f"devices {wanted}", lab.explain, 20)


def wide(steps: int = 1500) -> dict[str, object]:
    return document(steps=steps) | {"resources": {"devices": 2, "strategy": "ddp"}}


def occupant(tag: str) -> subprocess.Popen[bytes]:
    """A process that an attempt left running."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={processes.TAG: tag})


def test_a_trial_that_waits_for_devices_has_a_reason_and_can_be_paused_and_cancelled(narrow: Lab) -> None:
    running = narrow.submit(document())
    narrow.wait_for_checkpoint(running)
    waiting = narrow.submit(wide())
    reason = "needs 2 devices, 1 of 2 free, position 1 in the queue"
    wait(lambda: narrow.store.get(waiting.id).trial(SOLO).reason == reason, "the reason", narrow.explain)
    assert [event.message for event in narrow.events(waiting, "trial.waiting")] == [reason]
    are(narrow, "free", "held")
    narrow.ask(waiting, "pause")
    narrow.wait_for_state(waiting, "paused", 5)
    narrow.resume(waiting)
    wait(lambda: narrow.store.get(waiting.id).trial(SOLO).reason == reason, "the reason again", narrow.explain)
    narrow.ask(waiting, "cancel")
    narrow.wait_for_state(waiting, "cancelled", 5)
    narrow.ask(running, "cancel")
    narrow.wait_for_state(running, "cancelled")
    are(narrow, "free", "free")


def test_what_an_earlier_holder_left_is_ended_before_its_devices_are_used(narrow: Lab) -> None:
    tag = processes.attempt_tag(AttemptRef("job-gone", SOLO, 1), "worker-gone")
    left = occupant(tag)
    # as after a supervisor that was killed: its lease has run out, its process lives on
    lease = device_leases.acquire(narrow.store.redis, LEDGER, ["0", "1"], tag, 2, lease_seconds=30)
    assert isinstance(lease, device_leases.Lease)
    assert device_leases.renew(narrow.store.redis, lease, 0)
    job = narrow.submit(document(steps=5, checkpoint_every=5))
    narrow.wait_for_state(job, "succeeded")
    assert left.wait(5) == -signal.SIGKILL
    are(narrow, "free", "free")


def test_a_device_on_which_something_cannot_be_ended_is_quarantined(
    narrow: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = narrow
    monkeypatch.setattr(device_lease, "REAP_SECONDS", 0.1)
    # a process that a kill does not end needs a fault of the kernel: here the kill itself is what fails
    monkeypatch.setattr(trees, "kill", lambda found: None)
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    attempt = Attempt(lab.settings, AttemptRef("job", SOLO, 1), "worker")
    lease = device_leases.acquire(lab.store.redis, LEDGER, ["0", "1"], attempt.tag, 2, lease_seconds=30)
    assert isinstance(lease, device_leases.Lease)
    left = occupant(attempt.tag)
    try:
        device_lease.release(attempt, lease)
        found = [one for one in listing(lab) if one.state == "quarantined"]
        reason = f"process {left.pid} of {attempt.tag} could not be ended"
        assert [(one.id, one.reason) for one in found] == [("0", reason), ("1", reason)]
    finally:
        left.kill()
        left.wait()
        for id in ("0", "1"):
            assert device_leases.clear(lab.store.redis, LEDGER, id)


# --- faults


def started(lab: Lab, document: dict[str, object]) -> tuple[Job, psutil.Process, psutil.Process]:
    """A job that trains, the supervisor's process, and the worker's."""
    job = lab.submit(document)
    lab.wait_for_checkpoint(job)
    name = lab.store.get(job.id).trial(SOLO).worker
    assert name is not None
    worker = psutil.Process(int(name.split("-")[-2]))
    return job, worker.children()[0], worker


@pytest.mark.faults
@pytest.mark.parametrize("who", ["supervisor", pytest.param("worker", marks=pytest.mark.slow)])
def test_devices_of_a_killed_holder_are_free_again(narrow: Lab, who: str) -> None:
    job, horse, worker = started(narrow, document())
    are(narrow, "free", "held")
    (horse if who == "supervisor" else worker).kill()
    job = narrow.wait_for_state(job, "succeeded")
    assert job.trial(SOLO).attempt == 2
    are(narrow, "free", "free")


@pytest.mark.slow
@pytest.mark.faults
def test_a_stopped_holder_that_wakes_late_changes_nothing(narrow: Lab) -> None:
    first, horse, worker = started(narrow, wide())
    training = narrow.processes(first)
    holder = next(one.holder for one in listing(narrow))
    for process in (worker, horse):
        process.suspend()
    # the lease ends, the other worker takes the trial, and ends what still trained on the devices
    second = wait(lambda: narrow.store.get(first.id).trial(SOLO).attempt == 2, "another attempt", narrow.explain, 30)
    assert second
    wait(lambda: all(map(ended, training)), "the first attempt's processes to end", narrow.explain)
    wait(lambda: {one.holder for one in listing(narrow)} != {holder} and listing(narrow)[0].holder, "a new holder", str)
    before = {one.holder for one in listing(narrow)}
    assert len(before) == 1
    for process in (horse, worker):
        process.resume()
    wait(lambda: ended(horse), "the stopped supervisor to end", narrow.explain)
    assert {one.holder for one in listing(narrow)} == before
    job = narrow.wait_for_state(first, "succeeded", 120)
    assert (job.trial(SOLO).attempt, narrow.processes(job)) == (2, [])
    are(narrow, "free", "free")


def test_a_trial_goes_to_a_host_that_is_large_enough(shared_lab: Lab) -> None:
    lab = shared_lab
    lab.want_workers(1, MERGENET_CPU_SLOTS="1")
    job = lab.submit(wide(4))
    other = lab.wait_for_state(lab.submit(document(steps=5, checkpoint_every=5)), "succeeded")
    assert other.trial(SOLO).attempt == 1
    assert lab.store.get(job.id).trial(SOLO).attempt == 0, "the small host leaves it alone"
    assert rq_queue.waiting(lab.redis_server.client(decode=False), rq_queue.queue_of_devices(2)) == 1
    lab.start_worker(MERGENET_CPU_SLOTS="2")
    job = lab.wait_for_state(job, "succeeded", 120)
    assert job.trial(SOLO).attempt == 1


# --- the host process


@pytest.fixture(scope="module")
def host(shared_lab: Lab) -> Iterator[tuple[Lab, subprocess.Popen[bytes]]]:
    """A host that trains two trials at a time; the last of its tests kills it."""
    lab = shared_lab
    lab.want_workers(0)
    pool = lab.start_worker(MERGENET_CPU_SLOTS="2", MERGENET_WORKERS="2")
    # a worker that a test before has killed is listed until its entry runs out
    wait(lambda: len(below(pool)) == 2 and listening(lab) == below(pool), "two workers", lab.explain, 120)
    yield lab, pool
    lab.want_workers(0)


def below(pool: subprocess.Popen[bytes]) -> set[int]:
    return {child.pid for child in psutil.Process(pool.pid).children()}


def test_a_host_trains_the_trials_of_a_job_side_by_side(host: tuple[Lab, subprocess.Popen[bytes]]) -> None:
    lab, _ = host
    job = lab.submit(document(steps=300) | {"arms": ["transfer", "control"]}, solo=False)
    wait(lambda: sum(one.state == "held" for one in listing(lab)) == 2, "two devices at work", lab.explain)
    running = [trial.id for trial in lab.store.get(job.id).trials if trial.worker is not None]
    assert len(running) == 2
    trees.kill(wait(lambda: processes.tagged(f"{job.id}/{running[0]}/"), "its process", lab.explain))
    job = lab.wait_for_state(job, "succeeded", 120)
    assert {trial.id: trial.attempt for trial in job.trials if trial.id in running} == {running[0]: 2, running[1]: 1}


@pytest.mark.faults
def test_a_worker_that_dies_is_started_again_and_all_end_with_the_host(
    host: tuple[Lab, subprocess.Popen[bytes]],
) -> None:
    lab, pool = host
    lost, kept = sorted(listening(lab))
    os.kill(lost, signal.SIGKILL)
    wait(lambda: len(psutil.Process(pool.pid).children()) == 2 and lost not in below(pool), "a new one", lab.explain)
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    everything = psutil.Process(pool.pid).children(recursive=True)
    assert kept in {process.pid for process in everything}
    pool.kill()
    wait(lambda: all(map(ended, everything)), "all to end with the host process", lab.explain)
    assert lab.store.get(job.id).trial(SOLO).failures == 0, "it was drained, not lost"
    lab.ask(job, "cancel")
