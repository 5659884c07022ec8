"""Job records in Redis: created once, changed by compare-and-set, listed by state and label.

Every change goes through `Store.update`. It reads a record, applies a pure function of `records/state_machine.py` to
it, and writes the result, its indices, leases and events in one transaction; where the record changed meanwhile, it
starts over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast, get_args

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from mergenet_core.errors import IdempotencyConflict, NotFound, StateConflict
from mergenet_core.records.job import TERMINAL, Job, JobState
from mergenet_core.records.state_machine import ACTIVE
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.parse import digest
from mergenet_core.store import attempt_leases, events, keys, rq_queue
from mergenet_core.store.clock import redis_now

IDEMPOTENCY_SECONDS = 7 * 24 * 3600
_UNSETTLED_SECONDS = 3600
"""How long a folder may be without a record: longer than any request takes."""
_CLEARED_SECONDS = 60
"""How long a worker may take to clear the folder of a job that has succeeded, before the API does."""
_DELETED_SECONDS = 3600
"""How long it is known that a job was deleted, and not lost: longer than any attempt takes to end."""


@dataclass(frozen=True)
class Created:
    """The record of a submitted job."""

    job: Job
    new: bool
    """False if an earlier submission with the same idempotency key created it."""


class Store:
    """The records of all jobs. `redis` must decode responses."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def create(self, job: Job, spec: JobSpec, plan: JsonObject, *, idempotency_key: str | None = None) -> Created:
        """Write a new job, or return the one that the same owner made before with this idempotency key.

        Raises: `IdempotencyConflict` when the key came with another document.
        """
        document = spec.model_dump_json(exclude_defaults=True)
        sha256 = digest(spec)
        idempotency = keys.idempotency(job.owner, idempotency_key or "")
        with self.redis.pipeline() as pipe:
            while True:
                try:
                    if idempotency_key is not None:
                        pipe.watch(idempotency)  # type: ignore[no-untyped-call]
                        known = cast("str | None", pipe.get(idempotency))
                        if known is not None and (before := self._known(json.loads(known), sha256)):
                            return Created(before, new=False)
                    pipe.multi()
                    pipe.set(keys.job_spec(job.id), document)
                    pipe.set(keys.job_plan(job.id), json.dumps(plan))
                    if idempotency_key is not None:
                        pipe.set(idempotency, json.dumps({"job": job.id, "sha256": sha256}), ex=IDEMPOTENCY_SECONDS)
                        pipe.set(keys.job_idempotency(job.id), idempotency)
                    pipe.zrem(keys.UNSETTLED, job.id)
                    _write(pipe, None, job)
                    pipe.execute()
                    return Created(job, new=True)
                except WatchError:
                    continue

    def find_submission(self, spec: JobSpec, owner: str, idempotency_key: str) -> Job | None:
        """The job that an owner made before with this idempotency key and document.

        Raises: `IdempotencyConflict` when the key came with another document.
        """
        known = cast("str | None", self.redis.get(keys.idempotency(owner, idempotency_key)))
        return None if known is None else self._known(json.loads(known), digest(spec))

    def announce(self, job_id: str) -> None:
        """Note that a job's folder is about to be made, so that it is removed if the record is never written."""
        self.redis.zadd(keys.UNSETTLED, {job_id: redis_now(self.redis).timestamp() + _UNSETTLED_SECONDS})

    def unsettled(self) -> list[str]:
        """The ids of the jobs whose folder may have no record, or was not cleared after the job's success."""
        return cast("list[str]", self.redis.zrangebyscore(keys.UNSETTLED, "-inf", redis_now(self.redis).timestamp()))

    def settled(self, job_id: str) -> None:
        """Note that a job's folder and record agree."""
        self.redis.zrem(keys.UNSETTLED, job_id)

    def get(self, job_id: str) -> Job:
        """The record of a job. Raises: `NotFound`."""
        text = cast("str | None", self.redis.get(keys.job(job_id)))
        if text is None:
            raise NotFound(f"there is no job {job_id}; GET /jobs lists those there are")
        return Job.model_validate_json(text)

    def spec(self, job_id: str) -> JobSpec:
        """The document that the job was made from. Raises: `NotFound`."""
        return JobSpec.model_validate_json(self._document(job_id, keys.job_spec(job_id)))

    def plan(self, job_id: str) -> JsonObject:
        """The plan made when the job was accepted, as JSON. Raises: `NotFound`."""
        found: JsonObject = json.loads(self._document(job_id, keys.job_plan(job_id)))
        return found

    def update(
        self, job_id: str, change: Callable[[Job], Job], *, lease_seconds: float = attempt_leases.SECONDS
    ) -> Job:
        """Apply a transition of the state machine; when that raises, the record stays as it was.

        Raises: `NotFound`, and what `change` raises.
        """
        with self.redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(keys.job(job_id))  # type: ignore[no-untyped-call]
                    old = self._read(pipe, job_id)
                    new = change(old)
                    if new == old:
                        return old
                    at = redis_now(self.redis).timestamp()
                    pipe.multi()
                    _write(pipe, old, new)
                    _write_times(pipe, old, new, at)
                    attempt_leases.add_changes(pipe, old, new, at + lease_seconds)
                    pipe.execute()
                    return new
                except WatchError:
                    continue

    def page(
        self,
        *,
        state: JobState | None = None,
        label: tuple[str, str] | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> tuple[list[Job], str | None]:
        """Newest jobs first, `limit` at a time; the second value is the cursor to give as `after` for more."""
        index = keys.jobs_in_state(state) if state else keys.JOBS
        if label is not None:
            index, state_wanted = keys.jobs_with_label(*label), state
        else:
            state_wanted = None
        found: list[Job] = []
        cursor = after
        while len(found) <= limit:
            ids = cast(
                "list[str]",
                self.redis.zrevrangebylex(index, f"({cursor}" if cursor else "+", "-", start=0, num=limit + 1),
            )
            if not ids:
                break
            cursor = ids[-1]
            texts = cast("list[str | None]", self.redis.mget([keys.job(job_id) for job_id in ids]))
            jobs = [Job.model_validate_json(text) for text in texts if text is not None]
            found += [job for job in jobs if state_wanted is None or job.state == state_wanted]
            if len(ids) <= limit:
                break
        page = found[:limit]
        return page, page[-1].id if len(found) > limit else None

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        states = get_args(JobState)
        with self.redis.pipeline(transaction=False) as pipe:
            for state in states:
                pipe.zcard(keys.jobs_in_state(state))
            return {state: int(count) for state, count in zip(states, pipe.execute(), strict=True) if count}

    def queued(self) -> list[tuple[str, str]]:
        """Job and trial of everything that waits for a worker, in the order in which workers take it."""
        members = [
            member
            for fleet in (False, True)
            for member in cast("list[str]", self.redis.zrange(keys.queued(fleet), 0, -1))
        ]
        return [(job_id, trial_id) for job_id, _, trial_id in (member.split("/", 2) for member in members)]

    def queue_position(self, job: Job) -> int | None:
        """How many trials are ahead of the first that the job has in the queue; None if it has none there."""
        order = min((job.queue_order(trial) for trial in job.trials if trial.state == "queued"), default=None)
        return None if order is None else cast("int | None", self.redis.zrank(keys.queued(job.nodes > 1), order))

    def past_deadline(self) -> list[str]:
        """The ids of the jobs whose deadline is over."""
        return cast("list[str]", self.redis.zrangebyscore(keys.DEADLINES, "-inf", redis_now(self.redis).timestamp()))

    def delete(self, job_id: str) -> None:
        """Forget a job whose state is terminal; the caller removes its folder and calls `settled`.

        Raises: `NotFound`; `StateConflict` when it is not terminal, or was resumed just now.
        """
        with self.redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(keys.job(job_id))  # type: ignore[no-untyped-call]
                    job = self._read(pipe, job_id)
                    idempotency = cast("str | None", pipe.get(keys.job_idempotency(job_id)))
                    of_this = json.loads(cast("str | None", pipe.get(idempotency or "")) or "{}").get("job") == job_id
                    if job.state not in TERMINAL:
                        raise StateConflict(f"the job is {job.state}; cancel it first, or wait for its end")
                    at = redis_now(self.redis).timestamp()
                    pipe.multi()
                    pipe.zadd(keys.UNSETTLED, {job_id: at})  # a process killed now leaves the folder to `unsettled`
                    pipe.zrem(keys.JOBS, job_id)
                    pipe.zrem(keys.jobs_in_state(job.state), job_id)
                    for name, value in job.labels.items():
                        pipe.zrem(keys.jobs_with_label(name, value), job_id)
                    pipe.delete(*keys.all_of_job(job_id))
                    if idempotency is not None and of_this:
                        pipe.delete(idempotency)
                    rq_queue.withdraw_all(pipe, job)
                    if any(trial.attempt and trial.state != "succeeded" for trial in job.trials):
                        pipe.set(keys.deleted_job(job_id), "1", ex=_DELETED_SECONDS)
                    pipe.execute()
                    return
                except WatchError:
                    continue

    def deleted(self, job_id: str) -> bool:
        """Whether a user deleted the job, some of whose attempts might still run, within the last hour."""
        return bool(self.redis.exists(keys.deleted_job(job_id)))

    def forget_reports(self, job_id: str) -> None:
        """Remove what an attempt reported after its job was deleted."""
        self.redis.delete(*keys.all_of_job(job_id))

    def _read(self, pipe: Pipeline, job_id: str) -> Job:
        text = cast("str | None", pipe.get(keys.job(job_id)))
        if text is None:
            raise NotFound(f"there is no job {job_id}")
        return Job.model_validate_json(text)

    def _document(self, job_id: str, key: str) -> str:
        text = cast("str | None", self.redis.get(key))
        if text is None:
            raise NotFound(f"there is no job {job_id}")
        return text

    def _known(self, entry: dict[str, str], sha256: str) -> Job | None:
        if entry["sha256"] != sha256:
            raise IdempotencyConflict(
                f"this Idempotency-Key was used for job {entry['job']} with another document; take a new key"
            )
        try:
            return self.get(entry["job"])
        except NotFound:  # deleted since: the key is free again
            return None


def _write(pipe: Pipeline, old: Job | None, new: Job) -> None:
    pipe.set(keys.job(new.id), new.model_dump_json())
    if old is None:
        pipe.zadd(keys.JOBS, {new.id: 0})
        for name, value in new.labels.items():
            pipe.zadd(keys.jobs_with_label(name, value), {new.id: 0})
    if old is None or old.state != new.state:
        if old is not None:
            pipe.zrem(keys.jobs_in_state(old.state), new.id)
        pipe.zadd(keys.jobs_in_state(new.state), {new.id: 0})
    before = {trial.id: trial for trial in old.trials} if old else {}
    for trial in new.trials:
        was = before.get(trial.id)
        queued, was_queued = trial.state == "queued", was is not None and was.state == "queued"
        if queued and not was_queued:
            pipe.zadd(keys.queued(new.nodes > 1), {new.queue_order(trial): 0})
        elif was_queued and not queued:
            pipe.zrem(keys.queued(new.nodes > 1), new.queue_order(trial))
            if trial.state not in ACTIVE:  # else a worker has taken its message
                rq_queue.withdraw(pipe, new, trial)
    events.add_changes(pipe, old, new)


def _write_times(pipe: Pipeline, old: Job, new: Job, at: float) -> None:
    """Set a job's deadline when it first runs, remove it once the job has ended, and have its folder cleared then."""
    if new.deadline_seconds is not None and new.started_at is not None and old.started_at is None:
        pipe.zadd(keys.DEADLINES, {new.id: at + new.deadline_seconds})
    if new.state in TERMINAL and new.deadline_seconds is not None:
        pipe.zrem(keys.DEADLINES, new.id)
    if new.state == "succeeded" and old.state != "succeeded":
        pipe.zadd(keys.UNSETTLED, {new.id: at + _CLEARED_SECONDS})
