"""Who works on what, and until when: a lease a running trial, on Redis's clock, shorter than RQ's own.

A lease is taken and given back in the same transaction as the trial's state (`follow`), so the two never disagree.
"""

from __future__ import annotations

from typing import cast

from redis import Redis
from redis.client import Pipeline

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.records.state_machine import ACTIVE

SECONDS = 15.0
"""How long a worker may be silent before its trial is given to another."""
_LEASES = "mergenet:leases"


def deadline(redis: Redis, seconds: float) -> float:
    """That many seconds from now, on Redis's clock."""
    whole, micro = redis.time()
    return whole + micro / 1e6 + seconds


def follow(pipe: Pipeline, old: Job, new: Job, until: float) -> None:
    """Take a lease for each attempt that became active, give back that of each that no longer is."""
    before, after = _active(old), _active(new)
    for attempt in after - before:
        pipe.zadd(_LEASES, {str(attempt): until})
    for attempt in before - after:
        pipe.zrem(_LEASES, str(attempt))


def renew(redis: Redis, attempt: AttemptRef, seconds: float = SECONDS) -> bool:
    """Prolong a lease; false when it is no longer held, and then the attempt has to end."""
    changed = redis.zadd(_LEASES, {str(attempt): deadline(redis, seconds)}, xx=True, ch=True)
    return bool(changed)


def held(redis: Redis, attempt: AttemptRef) -> bool:
    """Whether somebody works on that attempt just now."""
    until = redis.zscore(_LEASES, str(attempt))
    return until is not None and until > deadline(redis, 0)


def expired(redis: Redis) -> list[AttemptRef]:
    """The attempts whose lease has run out."""
    members = cast("list[str]", redis.zrangebyscore(_LEASES, "-inf", deadline(redis, 0)))
    return [AttemptRef.parse(member) for member in members]


def drop(redis: Redis, attempt: AttemptRef) -> None:
    """Remove a lease that no record stands behind any more."""
    redis.zrem(_LEASES, str(attempt))


def _active(job: Job) -> set[AttemptRef]:
    return {job.attempt(trial) for trial in job.trials if trial.state in ACTIVE}
