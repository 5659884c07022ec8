"""Job records in a real Redis: compare-and-set, idempotency, paging, indices that agree with the records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from mergenet_core.errors import IdempotencyConflict, NotFound, StaleAttempt, StateConflict
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job, Trial
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from mergenet_core.store import attempt_leases, events, keys
from mergenet_core.store.jobs import Store
from tests.conftest import RedisServer
from tests.harness import document, job_of

TRIALS = (
    Trial(id="control-0", kind="arm", arm="control"),
    Trial(id="finalize", kind="finalize", needs=("control-0",)),
)
SPEC: JobSpec = parse(document())


def create(store: Store, **details: object) -> Job:
    return store.create(state_machine.submit(job_of(TRIALS, **details)), SPEC, {}).job  # type: ignore[arg-type]


def test_a_job_is_read_as_it_was_written(redis: Redis) -> None:
    store = Store(redis)
    job = create(store, labels={"team": "a"})
    assert store.get(job.id) == job
    assert store.spec(job.id) == SPEC
    assert store.queued() == [(job.id, "control-0")]


def test_of_many_workers_that_claim_at_once_one_gets_the_trial(redis: Redis, redis_server: RedisServer) -> None:
    job = create(Store(redis))

    def claim(worker: int) -> bool:
        try:
            Store(redis_server.client()).update(
                job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), f"w{worker}")
            )
            return True
        except StaleAttempt:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(claim, range(16))) == 1
    assert len([event for event in events.events(redis, job.id) if event.message.endswith("is starting")]) == 1


def test_no_change_is_lost_when_many_write_one_record(redis: Redis, redis_server: RedisServer) -> None:
    job = create(Store(redis))

    def count_up(_: int) -> None:
        Store(redis_server.client()).update(
            job.id, lambda job: job.model_copy(update={"max_attempts": job.max_attempts + 1})
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count_up, range(40)))
    assert Store(redis).get(job.id).max_attempts == job.max_attempts + 40


def test_a_refused_change_leaves_everything_as_it_was(redis: Redis) -> None:
    store = Store(redis)
    job = create(store)
    before = events.events(redis, job.id)
    with pytest.raises(StaleAttempt):
        store.update(job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 7), "w"))
    assert store.get(job.id) == job
    assert events.events(redis, job.id) == before


def test_the_lease_comes_and_goes_with_the_active_attempt(redis: Redis) -> None:
    store = Store(redis)
    job = create(store)
    store.update(
        job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), "w"), lease_seconds=0.5
    )
    assert attempt_leases.renew(redis, AttemptRef(job.id, "control-0", 1), 30)
    assert attempt_leases.expired(redis) == []
    assert not attempt_leases.renew(redis, AttemptRef(job.id, "control-0", 2), 30)
    attempt_leases.renew(redis, AttemptRef(job.id, "control-0", 1), -1)
    assert attempt_leases.expired(redis) == [AttemptRef(job.id, "control-0", 1)]
    store.update(job.id, lambda job: state_machine.hand_back(job, AttemptRef(job.id, "control-0", 1), "drained"))
    assert not attempt_leases.renew(redis, AttemptRef(job.id, "control-0", 1), 30)
    assert attempt_leases.expired(redis) == []


def test_an_idempotency_key_gives_the_same_job_again(redis: Redis) -> None:
    store = Store(redis)
    first = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k")
    again = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k")
    assert (first.new, again.new) == (True, False)
    assert again.job.id == first.job.id
    assert [job.id for job in store.page()[0]] == [first.job.id]


def test_an_idempotency_key_makes_one_job_of_many_posts_at_once(redis: Redis, redis_server: RedisServer) -> None:
    def post(_: int) -> tuple[str, bool]:
        store = Store(redis_server.client())
        created = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k")
        return created.job.id, created.new

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(new for _, new in answers) == 1


def test_an_idempotency_key_with_another_document_is_refused(redis: Redis) -> None:
    store = Store(redis)
    store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k")
    other = parse(document() | {"name": "another"})
    with pytest.raises(IdempotencyConflict, match="take a new key"):
        store.create(state_machine.submit(job_of(TRIALS)), other, {}, idempotency_key="k")


def test_an_idempotency_key_is_free_again_when_its_job_is_deleted(redis: Redis) -> None:
    store = Store(redis)
    job = store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k").job
    store.update(job.id, lambda job: state_machine.request(job, "cancel"))
    store.delete(job.id)
    assert store.create(state_machine.submit(job_of(TRIALS)), SPEC, {}, idempotency_key="k").new


def test_pages_hold_every_job_once_newest_first(redis: Redis) -> None:
    store = Store(redis)
    made = [create(store, labels={"kind": "odd" if index % 2 else "even"}).id for index in range(25)]
    seen: list[str] = []
    cursor = None
    while True:
        jobs, cursor = store.page(after=cursor, limit=10)
        seen += [job.id for job in jobs]
        if cursor is None:
            break
    assert seen == made[::-1]


def test_pages_filter_by_state_and_label(redis: Redis) -> None:
    store = Store(redis)
    jobs = [create(store, labels={"kind": "odd" if index % 2 else "even"}) for index in range(12)]
    for job in jobs[:6]:
        store.update(job.id, lambda job: state_machine.request(job, "cancel"))
    cancelled, more = store.page(state="cancelled", limit=50)
    assert ([job.id for job in cancelled], more) == ([job.id for job in jobs[5::-1]], None)
    both, more = store.page(state="cancelled", label=("kind", "odd"), limit=2)
    assert [job.id for job in both] == [jobs[5].id, jobs[3].id]
    rest, end = store.page(state="cancelled", label=("kind", "odd"), after=more, limit=2)
    assert ([job.id for job in rest], end) == ([jobs[1].id], None)
    assert store.counts() == {"queued": 6, "cancelled": 6}


def test_only_a_finished_job_can_be_deleted_and_then_nothing_of_it_stays(redis: Redis) -> None:
    store = Store(redis)
    job = create(store, labels={"team": "a"})
    with pytest.raises(StateConflict, match="cancel it first"):
        store.delete(job.id)
    store.update(job.id, lambda job: state_machine.request(job, "cancel"))
    store.delete(job.id)
    with pytest.raises(NotFound):
        store.get(job.id)
    assert store.unsettled() == [job.id], "its folder is still to be removed"
    store.settled(job.id)
    assert set(redis.keys("*")) - {keys.RECONCILER_LOCK} == set()


def test_a_job_that_is_deleted_while_an_attempt_still_ends_is_known_for_an_hour(redis: Redis) -> None:
    store = Store(redis)
    job = create(store)
    attempt = AttemptRef(job.id, "control-0", 1)
    store.update(job.id, lambda job: state_machine.claim(job, attempt, "w"))
    store.update(job.id, lambda job: state_machine.fail(job, attempt, code="x", reason="x", retryable=False))
    store.delete(job.id)
    store.settled(job.id)
    assert store.deleted(job.id)
    assert set(redis.keys("*")) - {keys.RECONCILER_LOCK} == {keys.deleted_job(job.id)}
    assert 0 < redis.ttl(keys.deleted_job(job.id)) <= 3600


def test_the_deadline_counts_from_the_first_attempt_and_fails_the_job_for_good(redis: Redis) -> None:
    store = Store(redis)
    made = job_of(TRIALS).model_copy(update={"deadline_seconds": 60})
    job = store.create(state_machine.submit(made), SPEC, {}).job
    assert redis.zcard(keys.DEADLINES) == 0, "waiting for the first worker does not count"
    store.update(job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), "w"))
    assert store.past_deadline() == []
    redis.zincrby(keys.DEADLINES, -61, job.id)
    assert store.past_deadline() == [job.id]
    job = store.update(job.id, state_machine.expire)
    assert (job.state, job.code, job.retryable) == ("failed", "deadline-exceeded", False)
    assert "control-0 was not done 60 s after the job first ran" in job.reason
    assert store.past_deadline() == []
    assert store.update(job.id, state_machine.expire) == job


def test_a_full_redis_refuses_a_job_whole(redis: Redis) -> None:
    store = Store(redis)
    before = set(redis.keys("*"))
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="maxmemory"):
            create(store)
    finally:
        redis.config_set("maxmemory", 0)
    assert set(redis.keys("*")) == before
    assert store.page() == ([], None)


def test_a_full_redis_refuses_a_change_whole(redis: Redis) -> None:
    store = Store(redis)
    job = create(store)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="maxmemory"):
            store.update(job.id, lambda job: state_machine.claim(job, AttemptRef(job.id, "control-0", 1), "w"))
    finally:
        redis.config_set("maxmemory", 0)
    assert store.get(job.id) == job
    assert store.queued() == [(job.id, "control-0")]
