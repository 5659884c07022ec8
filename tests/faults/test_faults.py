"""Processes are killed in mid-training; every job still ends once, whole, and with the loss of an undisturbed run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mergenet_core.errors import CheckpointInvalid
from mergenet_core.records.job import Job
from mergenet_core.storage import published_folder
from tests.harness import SOLO, Lab, document, ended, result_of, wait

pytestmark = pytest.mark.faults


def check(lab: Lab, job: Job, final_loss: float, *, attempts: int) -> Job:
    """One committed result, no process left, and the same loss: what must hold after every fault."""
    job = lab.wait_for_state(job, "succeeded")
    assert lab.processes(job) == []
    assert job.trial(SOLO).attempt == attempts
    commits = [event for event in lab.events(job, "trial.state") if event.data["state"] == "succeeded"]
    assert [event.attempt for event in commits] == [attempts]
    assert len(lab.events(job, "trial.resumed")) == attempts - 1
    assert result_of(job).final_loss == pytest.approx(final_loss, abs=1e-6)
    return job


def started(lab: Lab) -> Job:
    """A job that has a checkpoint and most of its steps still to do."""
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    return job


def test_a_killed_training_process_resumes(lab: Lab, final_loss: float) -> None:
    job = started(lab)
    training, _, _ = lab.chain(job)
    training.kill()
    job = check(lab, job, final_loss, attempts=2)
    assert job.trial(SOLO).failures == 1


@pytest.mark.slow
def test_a_stopped_training_process_is_noticed_and_the_trial_resumes(lab: Lab, final_loss: float) -> None:
    lab.want_workers(1, MERGENET_SILENCE_SECONDS="4")
    job = started(lab)
    training, _, _ = lab.chain(job)
    training.suspend()
    job = check(lab, job, final_loss, attempts=2)
    assert job.trial(SOLO).failures == 1
    (failure,) = [event for event in lab.events(job, "trial.state") if event.data["state"] == "queued"]
    assert "the training process sent no heartbeat for 4 s" in failure.message


def test_a_killed_work_horse_ends_its_training_and_the_trial_resumes(lab: Lab, final_loss: float) -> None:
    job = started(lab)
    _, horse, worker = lab.chain(job)
    horse.kill()
    check(lab, job, final_loss, attempts=2)
    assert not ended(worker)


def test_a_killed_worker_ends_its_processes_and_another_worker_goes_on(lab: Lab, final_loss: float) -> None:
    lab.want_workers(2)
    job = started(lab)
    training, horse, worker = lab.chain(job)
    worker.kill()
    wait(lambda: ended(training) and ended(horse), "both to end with the worker", lab.explain, lab.lease_seconds / 2)
    job = check(lab, job, final_loss, attempts=2)
    assert any("within the lease" in event.message for event in lab.events(job, "trial.state"))


def test_a_paused_worker_that_wakes_late_commits_nothing(lab: Lab, final_loss: float) -> None:
    lab.want_workers(2)
    job = started(lab)
    training, horse, worker = lab.chain(job)
    stopped = next(process for process in lab.workers if process.pid == worker.pid)
    worker.suspend()
    horse.suspend()
    # the training goes on to its end: when the work-horse wakes, it holds a whole result of an attempt that is over
    wait(lambda: ended(training), "the training's end", lab.explain)
    job = lab.wait_for_state(job, "succeeded")
    committed = job.trial(SOLO).result
    horse.resume()
    worker.resume()
    horse.wait(20)
    assert lab.store.get(job.id).trial(SOLO).result == committed
    log = (lab.folder / f"worker-{lab.workers.index(stopped)}.log").read_text()
    assert f"{job.id}/{SOLO}/1/" in log
    assert "lost its lease: its processes are ended and nothing is written" in log
    check(lab, job, final_loss, attempts=2)


def test_a_restart_of_redis_does_not_disturb_the_training(lab: Lab, final_loss: float) -> None:
    job = started(lab)
    training, _, _ = lab.chain(job)
    lab.redis_server.kill()
    lab.redis_server.start()
    check(lab, job, final_loss, attempts=1)
    assert ended(training)


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_redis_away_for_longer_than_the_lease_ends_the_attempt_and_a_second_one_resumes(
    lab: Lab, final_loss: float, how: str
) -> None:
    job = started(lab)
    _, horse, worker = lab.chain(job)
    server = psutil.Process(lab.redis_server.process.pid)
    lab.redis_server.kill() if how == "killed" else server.suspend()
    try:
        # before anyone else may think that the lease is over
        wait(lambda: not lab.processes(job), "the training's end", lab.explain, lab.lease_seconds)
    finally:
        lab.redis_server.start() if how == "killed" else server.resume()
    check(lab, job, final_loss, attempts=2)
    assert ended(horse)
    assert not ended(worker)


def test_a_torn_tail_of_the_append_only_file_loses_no_job(lab: Lab, final_loss: float) -> None:
    job = started(lab)
    lab.redis_server.kill()
    log = max(lab.redis_server.folder.rglob("*.aof"), key=lambda path: path.stat().st_size)
    os.truncate(log, log.stat().st_size - 40)
    lab.redis_server.start()
    job = lab.wait_for_state(job, "succeeded")
    assert lab.processes(job) == []
    assert result_of(job).final_loss == pytest.approx(final_loss, abs=1e-6)


def test_after_a_flipped_bit_in_the_newest_checkpoint_the_one_before_it_is_used(lab: Lab, final_loss: float) -> None:
    job = lab.submit(document())
    lab.wait_for_checkpoint(job, count=3)
    _, horse, worker = lab.chain(job)
    worker.suspend()  # so that the next attempt begins after the flip
    horse.kill()
    wait(lambda: not lab.processes(job), "the training's end", lab.explain)
    older, newest = lab.checkpoints(job)[-2:]
    flip_bit(newest / "model.safetensors")
    with pytest.raises(CheckpointInvalid, match="does not match its hash"):
        published_folder.verify(newest)
    worker.resume()
    job = check(lab, job, final_loss, attempts=2)
    assert f"{newest.name}: model.safetensors" in lab.events(job, "checkpoint.refused")[0].message
    assert lab.events(job, "trial.resumed")[0].data["step"] == int(older.name.removeprefix("step-"))


def test_a_full_disk_fails_with_a_sentence_keeps_the_older_step_and_can_be_resumed(
    lab: Lab, final_loss: float, small_disks: list[Path]
) -> None:
    def on_a_small_disk(job: Job) -> None:
        small_disks.append(mount_small_disk(lab.settings.job_folder(job.id).path))

    job = lab.submit(document(), before=on_a_small_disk)
    lab.wait_for_checkpoint(job)
    filler = small_disks[0] / "filler"
    fill(filler)
    job = lab.wait_for_state(job, "failed")
    assert (job.code, job.trial(SOLO).attempt) == ("storage-full", 1), lab.explain() + job.reason
    assert "Free disk" in job.reason
    assert published_folder.verify(lab.checkpoints(job)[-1]).step > 0
    assert not list(small_disks[0].rglob("*.attempt-*")), "nothing half-made is left"
    filler.unlink()
    lab.resume(job)
    check(lab, job, final_loss, attempts=2)


@pytest.fixture
def small_disks() -> Iterator[list[Path]]:
    mounted: list[Path] = []
    yield mounted
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount_small_disk(folder: Path) -> Path:
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system of one's own needs the right to mount")
    return folder


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def flip_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
