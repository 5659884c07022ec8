"""Who works on what, and until when: a lease a running trial, on Redis's clock, shorter than RQ's own.

A lease is taken and given back in the same transaction as the trial's state (`follow`), so the two never disagree.
"""

from __future__ import annotations

from typing import cast

from redis import Redis
from redis.client import Pipeline

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
    before = {(trial.id, trial.attempt) for trial in old.trials if trial.state in ACTIVE}
    after = {(trial.id, trial.attempt) for trial in new.trials if trial.state in ACTIVE}
    for trial_id, attempt in after - before:
        pipe.zadd(_LEASES, {_member(new.id, trial_id, attempt): until})
    for trial_id, attempt in before - after:
        pipe.zrem(_LEASES, _member(new.id, trial_id, attempt))


def renew(redis: Redis, job_id: str, trial_id: str, attempt: int, seconds: float = SECONDS) -> bool:
    """Prolong a lease; false when it is no longer held, and then the attempt has to end."""
    changed = redis.zadd(_LEASES, {_member(job_id, trial_id, attempt): deadline(redis, seconds)}, xx=True, ch=True)
    return bool(changed)


def held(redis: Redis, job_id: str, trial_id: str, attempt: int) -> bool:
    """Whether somebody works on that attempt just now."""
    until = redis.zscore(_LEASES, _member(job_id, trial_id, attempt))
    return until is not None and until > deadline(redis, 0)


def expired(redis: Redis) -> list[tuple[str, str, int]]:
    """Job, trial and attempt of every lease that has run out."""
    members = cast("list[str]", redis.zrangebyscore(_LEASES, "-inf", deadline(redis, 0)))
    found = []
    for member in members:
        job_id, trial_id, attempt = member.split("/")
        found.append((job_id, trial_id, int(attempt)))
    return found


def drop(redis: Redis, job_id: str, trial_id: str, attempt: int) -> None:
    """Remove a lease that no record stands behind any more."""
    redis.zrem(_LEASES, _member(job_id, trial_id, attempt))


def _member(job_id: str, trial_id: str, attempt: int) -> str:
    return f"{job_id}/{trial_id}/{attempt}"
