"""Makes the record of a job from its document and its plan."""

from __future__ import annotations

from ulid import ULID

from mergenet_core.planning.plan import Plan
from mergenet_core.records.job import Job
from mergenet_core.records.record import now
from mergenet_core.spec.job import JobSpec


def new_job(spec: JobSpec, plan: Plan, owner: str) -> Job:
    """The record of an accepted job, under a new id, before its trials are queued (`state_machine.submit`)."""
    created_at = now()
    return Job(
        id=str(ULID()),
        name=spec.name,
        labels=spec.labels,
        owner=owner,
        state="validating",
        code="accepted",
        reason="the document was accepted",
        trials=plan.trials,
        strategy=plan.strategy,
        memory_bytes=plan.estimate.memory_bytes,
        nodes=spec.resources.nodes,
        devices=spec.resources.devices,
        device=spec.resources.device,
        max_attempts=spec.resources.attempts,
        deadline_seconds=spec.resources.deadline_seconds,
        created_at=created_at,
        updated_at=created_at,
    )
