"""The line in which trials on several hosts wait for their devices: the job that came first is placed first.

A place in it counts only as long as its attempt's lease does, so that nobody waits for the dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from redis import Redis

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.store import attempt_leases

_LINE = "mergenet:fleet:line"


@dataclass(frozen=True)
class Place:
    """An attempt's place in the line."""

    job: Job
    attempt: AttemptRef

    def ahead(self, redis: Redis) -> int:
        """Join the line, if that was not done yet, and count who is before this attempt.

        Where two jobs ask at once, the older job is first; so is a job's trial that is tried again.
        """
        redis.zadd(_LINE, {str(self.attempt): self.job.created_at.timestamp()}, nx=True)
        members = cast("list[str]", redis.zrange(_LINE, 0, -1))
        member = str(self.attempt)
        before = members[: members.index(member)] if member in members else members
        gone = [member for member in before if not attempt_leases.held(redis, AttemptRef.parse(member))]
        if gone:
            redis.zrem(_LINE, *gone)
        return len(before) - len(gone)

    def leave(self, redis: Redis) -> None:
        """Let the next one be first."""
        redis.zrem(_LINE, str(self.attempt))
