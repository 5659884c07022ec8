"""The reconciler: messages may be lost or doubled, workers may die anywhere; the record's trials still run once."""

from __future__ import annotations

import time

import pytest
from redis import Redis
from rq import Queue

from mergenet_core.errors import StaleAttempt
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job, Trial
from mergenet_core.store import attempt_leases, keys, rq_queue
from mergenet_core.store.jobs import Store
from mergenet_core.store.reconciler import reconcile
from tests.store.test_jobs import create
from tests.store.test_rq_queue import waiting


def take(raw: Redis) -> str:
    """Take a message as a worker does that dies right after."""
    taken = Queue.lmove(raw, f"rq:queue:{rq_queue.QUEUE}", None)
    assert taken is not None
    return str(taken[1].decode())


def sweep(store: Store, raw: Redis, patience_seconds: float = 15) -> None:
    store.redis.delete(keys.RECONCILER_LOCK)
    assert reconcile(store, raw, patience_seconds=patience_seconds)


def test_a_queued_trial_gets_one_message_however_often_it_is_sent(redis: Redis, raw: Redis) -> None:
    job = create(Store(redis))
    for _ in range(3):
        rq_queue.enqueue(raw, job)
    sweep(Store(redis), raw)
    assert waiting(raw) == [f"{job.id}_control-0_1"]


def test_a_job_on_several_hosts_has_a_queue_of_its_own_from_which_lost_messages_come_back_too(
    redis: Redis, raw: Redis
) -> None:
    store = Store(redis)
    job = store.update(create(store).id, lambda job: job.model_copy(update={"nodes": 2}))
    rq_queue.enqueue(raw, job)
    sweep(store, raw)
    assert (waiting(raw), rq_queue.waiting(raw, rq_queue.FLEET)) == ([], 1)
    Queue(rq_queue.FLEET, connection=raw).empty()
    sweep(store, raw)
    assert [str(message) for message in Queue(rq_queue.FLEET, connection=raw).get_job_ids()] == [
        f"{job.id}_control-0_1"
    ]
    assert waiting(raw) == []


def test_a_message_that_never_reached_redis_is_sent_by_the_reconciler(redis: Redis, raw: Redis) -> None:
    job = create(Store(redis))
    sweep(Store(redis), raw)
    assert waiting(raw) == [f"{job.id}_control-0_1"]


def test_a_message_lost_between_taking_and_claiming_comes_back_after_a_while(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    job = create(store)
    rq_queue.enqueue(raw, job)
    taken = take(raw)
    sweep(store, raw)
    assert waiting(raw) == [], "a worker may be about to claim it"
    sweep(store, raw)
    assert waiting(raw) == []
    sweep(store, raw, patience_seconds=0)
    assert waiting(raw) == [taken]
    assert raw.lrange(f"rq:queue:{rq_queue.QUEUE}:intermediate", 0, -1) == []
    store.update(job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), "w"))


def test_a_message_that_was_sent_while_its_job_was_cancelled_is_removed(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    job, other = create(store), create(store)
    store.update(job.id, lambda job: state_machine.request(job, "cancel"))
    rq_queue.enqueue(raw, job)  # the record that was read before
    rq_queue.enqueue(raw, other)
    assert len(waiting(raw)) == 2
    sweep(store, raw)
    assert waiting(raw) == [f"{other.id}_control-0_1"]
    assert raw.keys(f"rq:job:{job.id}*") == []


def test_a_claimed_trial_is_not_sent_again(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    job = create(store)
    rq_queue.enqueue(raw, job)
    take(raw)
    store.update(job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), "w"))
    sweep(store, raw, patience_seconds=0)
    sweep(store, raw, patience_seconds=0)
    assert waiting(raw) == []


def test_an_attempt_whose_lease_ran_out_is_ended_and_tried_again_when_its_pause_is_over(
    redis: Redis, raw: Redis
) -> None:
    store = Store(redis)
    job = create(store)
    store.update(job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), "w"))
    attempt_leases.renew(redis, AttemptRef(job.id, "control-0", 1), -1)
    sweep(store, raw)
    record = store.get(job.id)
    trial = record.trial("control-0")
    assert (record.state, record.code, trial.losses, trial.failures) == ("recovering", "worker-lost", 1, 0)
    assert waiting(raw) == [], "it pauses after a failure"
    not_before = record.trial("control-0").not_before
    assert not_before is not None
    time.sleep(max(0.0, not_before.timestamp() - time.time()))
    sweep(store, raw)
    assert waiting(raw) == [f"{job.id}_control-0_2"]
    with pytest.raises(StaleAttempt):
        store.update(job.id, lambda job: state_machine.commit(job, AttemptRef(job.id, "control-0", 1)))


def test_a_lease_without_a_record_is_dropped(redis: Redis, raw: Redis) -> None:
    redis.zadd(keys.ATTEMPT_LEASES, {"gone/control-0/1": 0})
    sweep(Store(redis), raw)
    assert attempt_leases.expired(redis) == []


def test_one_caller_at_a_time_reconciles(redis: Redis, raw: Redis) -> None:
    assert reconcile(Store(redis), raw)
    assert not reconcile(Store(redis), raw)


def test_two_arms_whose_names_begin_alike_are_kept_apart(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    job: Job = create(store)
    more = Trial(id="control-01", kind="arm", arm="control", state="queued")
    store.update(job.id, lambda job: job.model_copy(update={"trials": (more, *job.trials)}))
    rq_queue.enqueue(raw, store.get(job.id).model_copy(update={"trials": (more,)}))
    sweep(store, raw)
    assert sorted(waiting(raw)) == [f"{job.id}_control-01_1", f"{job.id}_control-0_1"]
