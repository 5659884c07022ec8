"""The queue in which attempts on several hosts wait for devices: the oldest job is served first.

An entry counts only as long as its attempt holds its lease, so that nobody waits for an attempt that is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from redis import Redis

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import Job
from mergenet_core.store import attempt_leases, keys


@dataclass(frozen=True)
class QueueEntry:
    """An attempt that waits in the queue."""

    job: Job
    attempt: AttemptRef

    def join(self, redis: Redis) -> int:
        """Join the queue, unless that was done before, and return the queue position: how many attempts are ahead.

        The order is that of the jobs' creation, also for an attempt that joins late, as after a failure.
        """
        redis.zadd(keys.FLEET_QUEUE, {str(self.attempt): self.job.created_at.timestamp()}, nx=True)
        members = cast("list[str]", redis.zrange(keys.FLEET_QUEUE, 0, -1))
        member = str(self.attempt)
        before = members[: members.index(member)] if member in members else members
        gone = [member for member in before if not attempt_leases.held(redis, AttemptRef.parse(member))]
        if gone:
            redis.zrem(keys.FLEET_QUEUE, *gone)
        return len(before) - len(gone)

    def leave(self, redis: Redis) -> None:
        """Leave the queue."""
        redis.zrem(keys.FLEET_QUEUE, str(self.attempt))
