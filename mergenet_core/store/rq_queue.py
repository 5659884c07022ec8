"""Messages to workers through RQ: each names the one allowed function and an attempt, and nothing else.

Attempts on several hosts have a queue of their own. For those on one host there is a queue for each number of devices,
and one more for those that need CUDA; a worker listens to the queues of what its host has. Messages are in the order of
`Job.queue_order`, by which a worker also chooses between its queues. What runs is decided by the job's record: a
message that comes twice is refused there, and one that is lost is sent again by the reconciler.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import cast

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job as Message
from rq.results import Result
from rq.serializers import JSONSerializer

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job, Trial
from mergenet_core.store import keys
from mergenet_core.store.clock import redis_now

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
    queued = [trial for trial in job.trials if trial.state == "queued"]
    at = redis_now(redis) if queued else None
    for trial in queued:
        if at is not None and is_due(trial, at):
            send(redis, job, trial)


def send(redis: Redis, job: Job, trial: Trial) -> None:
    """Send the message of a trial's next attempt, unless it is in the queue already."""
    queue, id = _queue(redis, queue_name(job)), message_id(job.next_attempt(trial))
    with contextlib.suppress(DuplicateJobError):
        queue.enqueue_call(
            ENTRY_POINT,
            args=[str(job.next_attempt(trial))],
            job_id=id,
            unique=True,
            timeout=_NO_TIMEOUT,
            result_ttl=0,
            failure_ttl=_FAILURE_KEPT_SECONDS,
        )
        redis.register_script(_source())(keys=[queue.key, Message.key_for(id)], args=[id, job.queue_order(trial)])


def withdraw(pipe: Pipeline, job: Job, trial: Trial) -> None:
    """Take the message of a trial that is no longer to run out of the queue, with all that is known of it."""
    _remove(pipe, queue_name(job), message_id(job.next_attempt(trial)))


def withdraw_all(pipe: Pipeline, job: Job) -> None:
    """Remove every message of a job's trials, those of ended attempts included."""
    for trial in job.trials:
        for number in range(1, trial.attempt + 2):
            _remove(pipe, queue_name(job), message_id(AttemptRef(job.id, trial.id, number)))


def forget_ended(redis: Redis, queue: str, attempt: AttemptRef) -> None:
    """Remove what RQ keeps of the message of an attempt that has ended, however it did: the record says it all."""
    with redis.pipeline() as pipe:
        _remove(pipe, queue, message_id(attempt))
        pipe.execute()


def _remove(pipe: Pipeline, queue: str, id: str) -> None:
    pipe.lrem(f"{Queue.redis_queue_namespace_prefix}{queue}", 0, id)
    pipe.lrem(f"{Queue.redis_queue_namespace_prefix}{queue}:intermediate", 0, id)
    pipe.zrem(f"rq:failed:{queue}", id)
    pipe.delete(Message.key_for(id), Result.get_key(id), f"rq:executions:{id}", keys.taken_message(id))


def oldest_first(redis: Redis, queues: Sequence[Queue]) -> list[Queue]:
    """Sort queues by their first messages: the one whose first trial is to run first, first; empty ones last."""
    with redis.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.lindex(queue.key, 0)
        heads = cast("list[bytes | None]", pipe.execute())
        for head in heads:
            pipe.hget(Message.key_for((head or b"").decode(errors="replace")), "order")
        orders = cast("list[bytes | None]", pipe.execute())
    ranks = [(head is None, order or head or b"") for head, order in zip(heads, orders, strict=True)]
    return [queue for _, queue in sorted(zip(ranks, queues, strict=True), key=lambda pair: pair[0])]


def forget(redis: Redis, queue: str, attempt: AttemptRef) -> None:
    """Delete the message of an attempt that a worker took and did not claim before it died."""
    with contextlib.suppress(NoSuchJobError):
        Message.fetch(message_id(attempt), connection=redis, serializer=JSONSerializer).delete()
    # else RQ's own maintenance would take the next message of the same name for one that is stuck there
    _queue(redis, queue).intermediate_queue.remove(message_id(attempt))


def exists(redis: Redis, attempt: AttemptRef) -> bool:
    """Whether RQ knows the attempt's message, in a queue or taken by a worker."""
    return bool(Message.exists(message_id(attempt), connection=redis))


def compare(redis: Redis, trials: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of the queued trials, each a job id and a trial id, of which no queue has a message.

    A message of a trial that is not queued is removed: it was sent while a user paused or cancelled the job.
    """
    sent = {
        str(message): queue.name
        for queue in Queue.all(connection=redis, serializer=JSONSerializer)
        for message in queue.get_job_ids()
    }
    stems = {_stem(*trial): trial for trial in trials}
    with redis.pipeline() as pipe:
        for message, queue in sent.items():
            stem, ours, _ = message.rpartition("_")
            if ours and stem not in stems:
                _remove(pipe, queue, message)
        pipe.execute()
    found = {message.rpartition("_")[0] for message in sent}
    return [trial for stem, trial in stems.items() if stem not in found]


def is_due(trial: Trial, at: datetime) -> bool:
    """Whether a queued trial's next attempt may begin at a time on Redis's clock."""
    return trial.state == "queued" and (trial.not_before is None or trial.not_before <= at)


def queue_name(job: Job) -> str:
    """The name of the queue that carries a job's trials."""
    return FLEET if job.nodes > 1 else queue_of_devices(job.devices, cuda=job.device == "cuda")


def queue_of_devices(devices: int, *, cuda: bool = False) -> str:
    """The name of the queue of trials on this number of devices of one host, of any kind or only with CUDA."""
    return QUEUE + ("-cuda" if cuda else "") + ("" if devices == 1 else f"-{devices}")


def waiting(redis: Redis, queue: str) -> int:
    """How many messages of a queue no worker has taken yet."""
    return int(_queue(redis, queue).count)


def message_id(attempt: AttemptRef) -> str:
    """RQ's id of the message of an attempt."""
    return f"{_stem(attempt.job_id, attempt.trial_id)}_{attempt.number}"


def _stem(job_id: str, trial_id: str) -> str:
    return f"{job_id}_{trial_id.replace('+', '-and-')}"  # RQ allows no `+`


@cache
def _source() -> str:
    return (files("mergenet_core.store") / "lua" / "place_message.lua").read_text()


def _queue(redis: Redis, name: str) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)
