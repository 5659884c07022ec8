"""Leases of running attempts: which attempt is worked on, and until when, on Redis's clock.

A lease is taken and given back in the same transaction as the trial's state (`add_changes`), so the two never disagree.
It is shorter than RQ's own time limits.
"""

from __future__ import annotations

from typing import cast

from redis import Redis
from redis.client import Pipeline

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.records.state_machine import ACTIVE
from mergenet_core.store import keys

SECONDS = 15.0
"""How long a worker may be silent before its trial is given to another worker."""


def deadline(redis: Redis, seconds: float) -> float:
    """That many seconds from now, on Redis's clock."""
    whole, micro = redis.time()
    return whole + micro / 1e6 + seconds


def add_changes(pipe: Pipeline, old: Job, new: Job, until: float) -> None:
    """Take a lease for each attempt that became active, and drop the lease of each that no longer is."""
    before, after = _active(old), _active(new)
    for attempt in after - before:
        pipe.zadd(keys.ATTEMPT_LEASES, {str(attempt): until})
    for attempt in before - after:
        pipe.zrem(keys.ATTEMPT_LEASES, str(attempt))


def renew(redis: Redis, attempt: AttemptRef, seconds: float = SECONDS) -> bool:
    """Prolong a lease; false when it no longer exists, and then the attempt must end."""
    changed = redis.zadd(keys.ATTEMPT_LEASES, {str(attempt): deadline(redis, seconds)}, xx=True, ch=True)
    return bool(changed)


def held(redis: Redis, attempt: AttemptRef) -> bool:
    """Whether the attempt has a lease that has not run out."""
    until = redis.zscore(keys.ATTEMPT_LEASES, str(attempt))
    return until is not None and until > deadline(redis, 0)


def expired(redis: Redis) -> list[AttemptRef]:
    """The attempts whose lease has run out."""
    members = cast("list[str]", redis.zrangebyscore(keys.ATTEMPT_LEASES, "-inf", deadline(redis, 0)))
    return [AttemptRef.parse(member) for member in members]


def drop(redis: Redis, attempt: AttemptRef) -> None:
    """Remove a lease whose attempt is not active in any record."""
    redis.zrem(keys.ATTEMPT_LEASES, str(attempt))


def _active(job: Job) -> set[AttemptRef]:
    return {job.attempt(trial) for trial in job.trials if trial.state in ACTIVE}
