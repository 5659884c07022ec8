"""RQ as the carrier: one allow-listed entry point, and in a message only which attempt to run.

Trials on several hosts have a queue, and trials on one have a queue for every number of devices that they need. A
worker listens to the former, or to those of the latter that its host is large enough for.

The record decides what runs (`store.py`); a message that is lost is sent again by `reconcile`, one that comes twice is
refused by the record.
"""

from __future__ import annotations

import contextlib
import time
from typing import cast

from redis import Redis
from rq import Queue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job as Message
from rq.serializers import JSONSerializer

from mergenet_core.errors import NotFound, StaleAttempt
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job, Trial
from mergenet_core.records.record import now
from mergenet_core.store import attempt_leases
from mergenet_core.store.jobs import Store

QUEUE = "mergenet"
"""The queue of trials on one device."""
FLEET = "mergenet-fleet"
"""The queue of jobs on several hosts; all their trials, so that a fleet needs no other worker."""
ENTRY_POINT = "workers.supervisor.run"
"""The one function that a message may name."""
_NO_TIMEOUT = -1
_SWEEP_LOCK = "mergenet:reconciler"
_TAKEN_KEPT_SECONDS = 3600


def enqueue(redis: Redis, job: Job) -> None:
    """Send a message for every queued trial of a job; a trial that has one already gets no second.

    A trial that waits after a failure gets its message from `reconcile`, when its time has come.
    """
    queue = _queue(redis, name(job))
    for trial in job.trials:
        if _due(trial):
            _send(queue, job.next_attempt(trial))


def reconcile(
    store: Store, redis: Redis, *, every_seconds: float = 5.0, patience_seconds: float = attempt_leases.SECONDS
) -> bool:
    """Make queue and records agree: end what lost its lease, send again what got lost.

    `redis` is the connection for RQ, which does not decode. A message that a worker took from the queue and that did
    not become a claim within `patience_seconds` counts as lost. Safe to call from anywhere and any number of times; one
    caller in `every_seconds` does the work, and the value says whether it was this one.
    """
    if not store.redis.set(_SWEEP_LOCK, "1", nx=True, px=int(every_seconds * 1000)):
        return False
    for attempt in attempt_leases.expired(store.redis):
        _lose(store, redis, attempt)
    queues = Queue.all(connection=redis, serializer=JSONSerializer)
    sent = {str(message).rpartition("_")[0] for queue in queues for message in queue.get_job_ids()}
    for job_id, trial_id in store.queued():
        if _stem(job_id, trial_id) in sent:
            continue
        try:
            job = store.get(job_id)
        except NotFound:
            continue
        trial, queue = job.trial(trial_id), _queue(redis, name(job))
        attempt = job.next_attempt(trial)
        message = message_id(attempt)
        if _due(trial) and not _taken_lately(redis, message, patience_seconds):
            _forget(queue, message)
            _send(queue, attempt)
    return True


def name(job: Job) -> str:
    """The queue that carries a job's trials."""
    return FLEET if job.nodes > 1 else named(job.devices)


def named(devices: int) -> str:
    """The queue of trials on so many devices of one host."""
    return QUEUE if devices == 1 else f"{QUEUE}-{devices}"


def waiting(redis: Redis, queue: str) -> int:
    """How many messages nobody has taken yet."""
    return int(_queue(redis, queue).count)


def message_id(attempt: AttemptRef) -> str:
    """RQ's id of the message that carries one attempt."""
    return f"{_stem(attempt.job_id, attempt.trial_id)}_{attempt.number}"


def _stem(job_id: str, trial_id: str) -> str:
    return f"{job_id}_{trial_id.replace('+', '-and-')}"


def _due(trial: Trial) -> bool:
    return trial.state == "queued" and (trial.not_before is None or trial.not_before <= now())


def _queue(redis: Redis, name: str = QUEUE) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)


def _send(queue: Queue, attempt: AttemptRef) -> None:
    with contextlib.suppress(DuplicateJobError):
        queue.enqueue_call(
            ENTRY_POINT,
            args=[str(attempt)],
            job_id=message_id(attempt),
            unique=True,
            timeout=_NO_TIMEOUT,
            result_ttl=0,
            failure_ttl=3600,
        )


def _taken_lately(redis: Redis, message: str, patience_seconds: float) -> bool:
    if not Message.exists(message, connection=redis):
        return False
    moment = time.time()
    if redis.set(_taken(message), moment, nx=True, ex=_TAKEN_KEPT_SECONDS):
        return True
    return moment - float(cast("bytes", redis.get(_taken(message)) or 0)) < patience_seconds


def _taken(message: str) -> str:
    return f"mergenet:taken:{message}"


def _forget(queue: Queue, message: str) -> None:
    """Drop a message that was taken from the queue by a worker that died before it claimed the trial."""
    with contextlib.suppress(NoSuchJobError):
        Message.fetch(message, connection=queue.connection, serializer=JSONSerializer).delete()
    # RQ's own sweep would otherwise take the message's successor for one that is stuck there
    queue.intermediate_queue.remove(message)
    queue.connection.delete(_taken(message))


def _lose(store: Store, redis: Redis, attempt: AttemptRef) -> None:
    reason = "its worker has not been heard of within the lease"
    try:
        job = store.update(
            attempt.job_id,
            lambda job: state_machine.fail(job, attempt, code="worker-lost", reason=reason, retryable=True),
        )
    except (StaleAttempt, NotFound, KeyError):
        attempt_leases.drop(store.redis, attempt)
        return
    enqueue(redis, job)
