"""RQ as the carrier: one queue, one allow-listed entry point, ids and nothing else in a message.

The record decides what runs (`store.py`); a message that is lost is sent again by `reconcile`, one that comes twice is
refused by the record.
"""

from __future__ import annotations

import contextlib

from redis import Redis
from rq import Queue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job as Message
from rq.serializers import JSONSerializer

from mergenet_core.errors import NotFound, StaleAttempt
from mergenet_core.jobs import leases, state
from mergenet_core.jobs.records import Job
from mergenet_core.jobs.store import Store

QUEUE = "mergenet"
ENTRY_POINT = "workers.supervisor.run"
"""The one function that a message may name."""
_NO_TIMEOUT = -1
_SWEEP_LOCK = "mergenet:reconciler"


def enqueue(redis: Redis, job: Job) -> None:
    """Send a message for every queued trial of a job; a trial that has one already gets no second."""
    queue = _queue(redis)
    for trial in job.trials:
        if trial.state == "queued":
            _send(queue, job.id, trial.id, trial.attempt + 1)


def reconcile(store: Store, redis: Redis, *, every_seconds: float = 5.0) -> bool:
    """Make queue and records agree: end what lost its lease, send again what got lost.

    `redis` is the connection for RQ, which does not decode. Safe to call from anywhere and any number of times; one
    caller in `every_seconds` does the work, and the value says whether it was this one.
    """
    if not store.redis.set(_SWEEP_LOCK, "1", nx=True, px=int(every_seconds * 1000)):
        return False
    for job_id, trial_id, attempt in leases.expired(store.redis):
        _lose(store, redis, job_id, trial_id, attempt)
    queue = _queue(redis)
    sent = {str(message_id) for message_id in queue.get_job_ids()}
    for job_id, trial_id in store.queued():
        try:
            job = store.get(job_id)
        except NotFound:
            continue
        trial = job.trial(trial_id)
        if trial.state == "queued" and message_id(job_id, trial_id, trial.attempt + 1) not in sent:
            _forget(queue, message_id(job_id, trial_id, trial.attempt + 1))
            _send(queue, job_id, trial_id, trial.attempt + 1)
    return True


def message_id(job_id: str, trial_id: str, attempt: int) -> str:
    """RQ's id of the message that carries one attempt."""
    return f"{job_id}_{trial_id.replace('+', '-and-')}_{attempt}"


def _queue(redis: Redis) -> Queue:
    return Queue(QUEUE, connection=redis, serializer=JSONSerializer)


def _send(queue: Queue, job_id: str, trial_id: str, attempt: int) -> None:
    with contextlib.suppress(DuplicateJobError):
        queue.enqueue_call(
            ENTRY_POINT,
            args=[job_id, trial_id, attempt],
            job_id=message_id(job_id, trial_id, attempt),
            unique=True,
            timeout=_NO_TIMEOUT,
            result_ttl=0,
            failure_ttl=3600,
        )


def _forget(queue: Queue, message: str) -> None:
    """Drop a message that was taken from the queue by a worker that died before it claimed the trial."""
    with contextlib.suppress(NoSuchJobError):
        Message.fetch(message, connection=queue.connection, serializer=JSONSerializer).delete()


def _lose(store: Store, redis: Redis, job_id: str, trial_id: str, attempt: int) -> None:
    reason = "its worker has not been heard of within the lease"
    try:
        job = store.update(
            job_id,
            lambda job: state.fail(job, trial_id, attempt, code="worker-lost", reason=reason, retryable=True),
        )
    except (StaleAttempt, NotFound, KeyError):
        leases.drop(store.redis, job_id, trial_id, attempt)
        return
    enqueue(redis, job)
