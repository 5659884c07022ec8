"""After all jobs are deleted, Redis and the home hold what they held before the first: nothing is forgotten."""

from __future__ import annotations

import random
import shutil
import time

import pytest

from mergenet_core.errors import MergeNetError
from mergenet_core.records import state_machine
from mergenet_core.records.job import TERMINAL, Job
from mergenet_core.records.state_machine import ACTIVE
from mergenet_core.store import rq_queue
from tests.harness import SOLO, Lab, document, wait

pytestmark = [pytest.mark.faults, pytest.mark.slow]
_WORKERS = (
    *("rq:worker", "rq:clean_registries", "rq:queues", "rq:intermediate"),
    *("mergenet:workers", "mergenet:reconciler", "mergenet:device"),
)
"""What workers keep, whether there are jobs or not."""


def keys(lab: Lab) -> set[str]:
    return {str(key) for key in lab.store.redis.keys("*") if not str(key).startswith(_WORKERS)}


def act(lab: Lab, job: Job, dice: random.Random) -> None:
    """What a user or a fault does to a job."""
    what = dice.choice(["cancel", "pause", "resume", "checkpoint", "kill training", "kill horse"])
    if what.startswith("kill"):
        for process in lab.processes(job)[:1]:
            victim = process if what == "kill training" else process.parent()
            if victim is not None:
                victim.kill()
        return
    try:
        change = state_machine.resume if what == "resume" else lambda record: state_machine.request(record, what)
        rq_queue.enqueue(lab.redis_server.client(decode=False), lab.store.update(job.id, change))
    except MergeNetError:
        return


def test_a_random_run_leaves_no_key_and_no_folder(lab: Lab) -> None:
    lab.want_workers(2)
    jobs_folder = lab.settings.home / "jobs"
    shutil.rmtree(jobs_folder, ignore_errors=True)
    lab.store.redis.flushall()
    dice = random.Random(0)
    jobs = [lab.submit(document(steps=400, checkpoint_every=100), solo=bool(n % 3)) for n in range(12)]
    deadline = time.monotonic() + 45
    while time.monotonic() < deadline:
        act(lab, dice.choice(jobs), dice)
        time.sleep(0.3)
    for job in jobs:
        if lab.store.get(job.id).state not in TERMINAL:
            lab.store.update(job.id, lambda record: state_machine.request(record, "cancel"))
    for job in jobs:
        wait(lambda id=job.id: lab.store.get(id).state in TERMINAL, "every job to end", lab.explain, 90)  # type: ignore[misc]
    assert not any(trial.state in ACTIVE for job in jobs for trial in lab.store.get(job.id).trials)
    wait(lambda: not any(lab.processes(job) for job in jobs), "all processes to end", lab.explain)
    for job in jobs:
        lab.store.delete(job.id)
        shutil.rmtree(lab.settings.job_folder(job.id).path, ignore_errors=True)
        lab.store.settled(job.id)

    def left() -> set[str]:
        redis = lab.store.redis
        soon = {key for key in keys(lab) if key.startswith("rq:execution:") and 0 < redis.ttl(key) < 180}
        return {key for key in keys(lab) - soon if not key.startswith("mergenet:deleted:")}

    wait(lambda: not left(), f"nothing to be left, of which {sorted(left())[:9]}", lab.explain, 30)
    assert all(lab.store.redis.ttl(key) > 0 for key in keys(lab))
    assert list(jobs_folder.iterdir()) == []


def test_a_job_whose_deadline_is_over_ends_with_everything_that_runs_of_it(lab: Lab) -> None:
    job = lab.submit(document(steps=100_000, checkpoint_every=500) | {"resources": {"deadline_seconds": 4}})
    lab.wait_for_checkpoint(job)
    job = lab.wait_for_state(job, "failed")
    assert (job.code, job.trial(SOLO).attempt, job.retryable) == ("deadline-exceeded", 1, False)
    wait(lambda: not lab.processes(job), "its training to end", lab.explain)
    assert lab.checkpoints(job), "what it had reached is kept"
