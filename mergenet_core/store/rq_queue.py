"""Messages to workers through RQ: each names the one allowed function and an attempt, and nothing else.

Attempts on several hosts have a queue of their own. For those on one host there is a queue for each number of devices,
and a worker listens to the queues of the numbers that its host has. What runs is decided by the job's record: a message
that comes twice is refused there, and one that is lost is sent again by the reconciler.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from redis import Redis
from rq import Queue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job as Message
from rq.serializers import JSONSerializer

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job, Trial
from mergenet_core.records.record import now

QUEUE = "mergenet"
"""The queue of trials on one device."""
FLEET = "mergenet-fleet"
"""The queue of jobs on several hosts, with all their trials, so that a fleet needs no other worker."""
ENTRY_POINT = "workers.supervisor.run"
"""The one function that a message may name."""
_NO_TIMEOUT = -1
_FAILURE_KEPT_SECONDS = 3600


def enqueue(redis: Redis, job: Job) -> None:
    """Send a message for every queued trial of a job; a trial that has one already gets no second.

    A trial that pauses after a failure gets its message from the reconciler, once the pause is over.
    """
    for trial in job.trials:
        if is_due(trial):
            send(redis, queue_name(job), job.next_attempt(trial))


def send(redis: Redis, queue: str, attempt: AttemptRef) -> None:
    """Send the message of one attempt, unless it is in the queue already."""
    with contextlib.suppress(DuplicateJobError):
        _queue(redis, queue).enqueue_call(
            ENTRY_POINT,
            args=[str(attempt)],
            job_id=message_id(attempt),
            unique=True,
            timeout=_NO_TIMEOUT,
            result_ttl=0,
            failure_ttl=_FAILURE_KEPT_SECONDS,
        )


def forget(redis: Redis, queue: str, attempt: AttemptRef) -> None:
    """Delete the message of an attempt that a worker took and did not claim before it died."""
    with contextlib.suppress(NoSuchJobError):
        Message.fetch(message_id(attempt), connection=redis, serializer=JSONSerializer).delete()
    # else RQ's own maintenance would take the next message of the same name for one that is stuck there
    _queue(redis, queue).intermediate_queue.remove(message_id(attempt))


def exists(redis: Redis, attempt: AttemptRef) -> bool:
    """Whether RQ knows the attempt's message, in a queue or taken by a worker."""
    return bool(Message.exists(message_id(attempt), connection=redis))


def unsent(redis: Redis, trials: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the trials, each a job id and a trial id, of which no queue holds a message."""
    queues = Queue.all(connection=redis, serializer=JSONSerializer)
    sent = {str(message).rpartition("_")[0] for queue in queues for message in queue.get_job_ids()}
    return [(job_id, trial_id) for job_id, trial_id in trials if _stem(job_id, trial_id) not in sent]


def is_due(trial: Trial) -> bool:
    """Whether a queued trial's next attempt may begin now."""
    return trial.state == "queued" and (trial.not_before is None or trial.not_before <= now())


def queue_name(job: Job) -> str:
    """The name of the queue that carries a job's trials."""
    return FLEET if job.nodes > 1 else queue_of_devices(job.devices)


def queue_of_devices(devices: int) -> str:
    """The name of the queue of trials on this number of devices of one host."""
    return QUEUE if devices == 1 else f"{QUEUE}-{devices}"


def waiting(redis: Redis, queue: str) -> int:
    """How many messages of a queue no worker has taken yet."""
    return int(_queue(redis, queue).count)


def message_id(attempt: AttemptRef) -> str:
    """RQ's id of the message of an attempt."""
    return f"{_stem(attempt.job_id, attempt.trial_id)}_{attempt.number}"


def _stem(job_id: str, trial_id: str) -> str:
    return f"{job_id}_{trial_id.replace('+', '-and-')}"  # RQ allows no `+`


def _queue(redis: Redis, name: str) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)
