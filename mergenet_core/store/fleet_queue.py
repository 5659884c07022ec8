"""The line in which trials on several hosts wait for their devices: the job that came first is placed first.

A place in it counts only as long as its attempt's lease does, so that nobody waits for the dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from redis import Redis

from mergenet_core.records.job import Job
from mergenet_core.store import attempt_leases

_LINE = "mergenet:fleet:line"


@dataclass(frozen=True)
class Place:
    """An attempt's place in the line."""

    job: Job
    trial_id: str
    attempt: int

    @property
    def _member(self) -> str:
        return f"{self.job.id}/{self.trial_id}/{self.attempt}"

    def ahead(self, redis: Redis) -> int:
        """Join the line, if that was not done yet, and count who is before this attempt.

        Where two jobs ask at once, the older job is first; so is a job's trial that is tried again.
        """
        redis.zadd(_LINE, {self._member: self.job.created_at.timestamp()}, nx=True)
        members = cast("list[str]", redis.zrange(_LINE, 0, -1))
        before = members[: members.index(self._member)] if self._member in members else members
        gone = [member for member in before if not _held(redis, member)]
        if gone:
            redis.zrem(_LINE, *gone)
        return len(before) - len(gone)

    def leave(self, redis: Redis) -> None:
        """Let the next one be first."""
        redis.zrem(_LINE, self._member)


def _held(redis: Redis, member: str) -> bool:
    job_id, trial_id, attempt = member.split("/")
    return attempt_leases.held(redis, job_id, trial_id, int(attempt))
