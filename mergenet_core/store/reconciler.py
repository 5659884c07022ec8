"""Makes the queue agree with the job records, after workers or messages were lost."""

from __future__ import annotations

import contextlib
from typing import cast

from redis import Redis

from mergenet_core.errors import NotFound, StaleAttempt, WorkerLost
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.store import attempt_leases, keys, rq_queue
from mergenet_core.store.clock import redis_now
from mergenet_core.store.jobs import Store

_TAKEN_KEPT_SECONDS = 3600


def reconcile(
    store: Store, redis: Redis, *, every_seconds: float = 5.0, patience_seconds: float = attempt_leases.SECONDS
) -> bool:
    """Fail attempts whose lease and jobs whose deadline has run out; send the lost messages of queued trials again.

    `redis` is the connection for RQ, which does not decode. A message that a worker took counts as lost when the trial
    was not claimed within `patience_seconds`. It may be called from anywhere, any number of times: one caller in
    `every_seconds` does the work. Returns whether it was this caller.
    """
    if not store.redis.set(keys.RECONCILER_LOCK, "1", nx=True, px=int(every_seconds * 1000)):
        return False
    for attempt in attempt_leases.expired(store.redis):
        _fail(store, redis, attempt)
    for job_id in store.past_deadline():
        with contextlib.suppress(NotFound):
            store.update(job_id, state_machine.expire)
    for job_id, trial_id in rq_queue.compare(redis, store.queued()):
        _send_again(store, redis, job_id, trial_id, patience_seconds)
    return True


def _fail(store: Store, redis: Redis, attempt: AttemptRef) -> None:
    reason = "its worker has not been heard of within the lease"
    at = redis_now(store.redis)
    try:
        job = store.update(
            attempt.job_id,
            lambda job: state_machine.fail(job, attempt, code=WorkerLost.code, reason=reason, retryable=True, at=at),
        )
    except (StaleAttempt, NotFound, KeyError):
        attempt_leases.drop(store.redis, attempt)
        return
    rq_queue.enqueue(redis, job)


def _send_again(store: Store, redis: Redis, job_id: str, trial_id: str, patience_seconds: float) -> None:
    try:
        job = store.get(job_id)
    except NotFound:
        return
    trial, queue = job.trial(trial_id), rq_queue.queue_name(job)
    attempt = job.next_attempt(trial)
    if rq_queue.is_due(trial, redis_now(redis)) and not _may_be_claimed(redis, attempt, patience_seconds):
        rq_queue.forget(redis, queue, attempt)
        redis.delete(_taken(attempt))
        rq_queue.send(redis, job, trial)


def _may_be_claimed(redis: Redis, attempt: AttemptRef, patience_seconds: float) -> bool:
    """Whether a worker has taken the message so recently that it may still claim the trial."""
    if not rq_queue.exists(redis, attempt):
        return False
    now = redis_now(redis).timestamp()
    if redis.set(_taken(attempt), now, nx=True, ex=_TAKEN_KEPT_SECONDS):
        return True
    return now - float(cast("bytes", redis.get(_taken(attempt)) or 0)) < patience_seconds


def _taken(attempt: AttemptRef) -> str:
    return keys.taken_message(rq_queue.message_id(attempt))
