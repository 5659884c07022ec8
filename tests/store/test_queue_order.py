"""The order of waiting trials: the oldest job's first whatever they are, and what others need before the rest.

The queue in Redis is compared with a plain model after every step of random histories.
"""

from __future__ import annotations

import random

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job as Message

from mergenet_core.errors import StateConflict
from mergenet_core.records import state_machine
from mergenet_core.records.job import Job, Trial
from mergenet_core.store import keys, rq_queue
from mergenet_core.store.jobs import Store
from tests.harness import job_of
from tests.store.test_jobs import SPEC, create
from tests.store.test_rq_queue import waiting

TRIALS = (
    Trial(id="source", kind="source"),
    Trial(id="control-0", kind="arm", arm="control"),
    Trial(id="transfer-0-project", kind="arm", arm="transfer", needs=("source",)),
    Trial(id="transfer+distill-0", kind="arm", arm="transfer+distill", needs=("source", "transfer-0-project")),
    Trial(id="finalize", kind="finalize", needs=("source", "control-0", "transfer-0-project", "transfer+distill-0")),
)


def expected(store: Store, jobs: list[str]) -> list[str]:
    """Messages in the order that the model gives: jobs by age, trials by how many need them, then by the plan."""
    found = []
    for job_id in jobs:
        job = store.get(job_id)
        queued = [trial for trial in job.trials if trial.state == "queued"]
        needed = {trial.id: sum(trial.id in other.needs for other in job.trials) for trial in queued}
        for trial in sorted(queued, key=lambda trial: -needed[trial.id]):
            found.append(rq_queue.message_id(job.next_attempt(trial)))
    return found


def act(store: Store, raw: Redis, jobs: list[str], dice: random.Random) -> None:
    """Do something that a user, a worker or the reconciler may do."""
    what = dice.choice(["submit", "claim", "claim", "finish", "finish", "hand back", "pause", "resume", "cancel"])
    if what == "submit" or not jobs:
        jobs.append(create_job(store, raw).id)
        return
    job = store.get(dice.choice(jobs))
    active = [trial for trial in job.trials if trial.state in state_machine.ACTIVE]
    queued = [trial for trial in job.trials if trial.state == "queued"]
    if what == "claim" and queued:
        ref = job.next_attempt(queued[0])
        Queue(rq_queue.QUEUE, connection=raw).remove(rq_queue.message_id(ref))
        Message.fetch(rq_queue.message_id(ref), connection=raw, serializer=SERIALIZER).delete()
        job = store.update(job.id, lambda job: state_machine.claim(job, ref, "w"))
    elif what == "finish" and active:
        ref = job.attempt(dice.choice(active))
        job = store.update(job.id, lambda job: state_machine.commit(job, ref))
    elif what == "hand back" and active:
        ref = job.attempt(dice.choice(active))
        job = store.update(job.id, lambda job: state_machine.hand_back(job, ref, "drained"))
    elif what in ("pause", "resume", "cancel"):
        try:
            change = state_machine.resume if what == "resume" else lambda job: state_machine.request(job, what)
            job = store.update(job.id, change)
        except StateConflict:
            return
    rq_queue.enqueue(raw, job)


SERIALIZER = rq_queue.JSONSerializer


def create_job(store: Store, raw: Redis) -> Job:
    job = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}).job
    rq_queue.enqueue(raw, job)
    return job


@pytest.mark.parametrize("seed", range(4))
def test_the_queue_agrees_with_a_plain_model_in_random_histories(redis: Redis, raw: Redis, seed: int) -> None:
    store, dice, jobs = Store(redis), random.Random(seed), list[str]()
    for _ in range(80):
        act(store, raw, jobs, dice)
        wanted = expected(store, jobs)
        assert waiting(raw) == wanted
        assert len(store.queued()) == len(wanted)
        for job_id in jobs:
            job = store.get(job_id)
            ranks = [wanted.index(rq_queue.message_id(job.next_attempt(t))) for t in job.trials if t.state == "queued"]
            assert store.queue_position(job) == min(ranks, default=None)


def test_the_report_of_an_old_job_goes_before_younger_jobs(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    old = create(store)
    for _ in range(3):
        rq_queue.enqueue(raw, create(store))
    ref = old.next_attempt(old.trial("control-0"))
    store.update(old.id, lambda job: state_machine.claim(job, ref, "w"))
    rq_queue.enqueue(raw, store.update(old.id, lambda job: state_machine.commit(job, ref)))
    assert waiting(raw)[0] == f"{old.id}_finalize_1"


def test_of_several_queues_the_one_with_the_oldest_trial_is_first(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    queues = [Queue(rq_queue.queue_of_devices(count), connection=raw) for count in (1, 2, 3)]
    old = store.update(create(store).id, lambda job: job.model_copy(update={"devices": 3}))
    young = create(store)
    for job in (young, old):
        rq_queue.enqueue(raw, job)
    assert [queue.name for queue in rq_queue.oldest_first(raw, queues)] == ["mergenet-3", "mergenet", "mergenet-2"]


@pytest.mark.parametrize("what", ["cancel", "pause"])
def test_a_cancelled_or_paused_job_leaves_no_message(redis: Redis, raw: Redis, what: str) -> None:
    store = Store(redis)
    job = create(store)
    rq_queue.enqueue(raw, job)
    store.update(job.id, lambda job: state_machine.request(job, what))  # type: ignore[arg-type]
    assert waiting(raw) == []
    assert raw.keys("rq:job:*") == []


def test_deleting_many_jobs_leaves_no_key_but_rq_s_list_of_queues(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    jobs = [
        store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key=f"key {number}").job
        for number in range(20)
    ]
    for job in jobs:
        rq_queue.enqueue(raw, job)
    for job in jobs:
        store.update(job.id, lambda job: state_machine.request(job, "cancel"))
        store.delete(job.id)
        store.settled(job.id)
    assert set(redis.keys("*")) - {keys.RECONCILER_LOCK} == {"rq:queues"}


def test_an_old_idempotency_key_that_names_another_job_is_kept(redis: Redis) -> None:
    store = Store(redis)
    first = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k").job
    redis.delete("mergenet:idempotency:tests:k")  # as after seven days
    second = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k").job
    store.update(first.id, lambda job: state_machine.request(job, "cancel"))
    store.delete(first.id)
    again = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k")
    assert (again.new, again.job.id) == (False, second.id)
