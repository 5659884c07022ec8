"""The names of all Redis keys of the service; no other module builds one."""

from __future__ import annotations

JOBS = "mergenet:jobs"
"""Sorted set of all job ids; newest last, since ids begin with their time."""
UNSETTLED = "mergenet:unsettled"
"""Sorted set of the ids of jobs whose folder may not agree with the record, scored by when that is to be settled."""
DEADLINES = "mergenet:deadlines"
"""Sorted set of the ids of jobs with a deadline, scored by when it is."""
ATTEMPT_LEASES = "mergenet:leases"
"""Sorted set of attempts, scored by when their lease ends."""
DEVICE_LEASE_NUMBER = "mergenet:device-number"
"""The newest number given to a lease of devices, of any ledger."""
FLEET_QUEUE = "mergenet:fleet:queue"
"""Sorted set of attempts that wait for devices of several hosts, scored by when their job was created."""
WORKERS = "mergenet:workers"
"""Hash of live workers by name."""
API_KEYS = "mergenet:keys"
"""Hash of API keys by their SHA-256."""
RECONCILER_LOCK = "mergenet:reconciler"
"""Held by the process that reconciles queue and records."""


def job(job_id: str) -> str:
    """The record of a job."""
    return f"mergenet:job:{job_id}"


def job_spec(job_id: str) -> str:
    """The document that a job was made from."""
    return f"mergenet:job:{job_id}:spec"


def job_plan(job_id: str) -> str:
    """The plan of a job."""
    return f"mergenet:job:{job_id}:plan"


def queued(fleet: bool) -> str:
    """Sorted set of the queued trials of one host or of several, by `Job.queue_order`."""
    return "mergenet:waiting:fleet" if fleet else "mergenet:waiting"


def job_idempotency(job_id: str) -> str:
    """The name of the key under which a job was submitted with an idempotency key."""
    return f"mergenet:job:{job_id}:idempotency"


def job_events(job_id: str) -> str:
    """The stream of a job's events."""
    return f"mergenet:job:{job_id}:events"


def job_metrics(job_id: str) -> str:
    """The stream of a job's metrics."""
    return f"mergenet:job:{job_id}:metrics"


def job_progress(job_id: str) -> str:
    """Hash of the newest progress of a job's trials."""
    return f"mergenet:job:{job_id}:progress"


def all_of_job(job_id: str) -> tuple[str, ...]:
    """Every key that holds data of one job alone."""
    return tuple(
        key(job_id) for key in (job, job_spec, job_plan, job_idempotency, job_events, job_metrics, job_progress)
    )


def deleted_job(job_id: str) -> str:
    """Exists for a while after a job was deleted."""
    return f"mergenet:deleted:{job_id}"


def jobs_in_state(state: str) -> str:
    """Sorted set of the ids of the jobs in a state."""
    return f"{JOBS}:state:{state}"


def jobs_with_label(name: str, value: str) -> str:
    """Sorted set of the ids of the jobs with a label."""
    return f"{JOBS}:label:{name}={value}"


def idempotency(owner: str, key: str) -> str:
    """The job that an owner made with an idempotency key."""
    return f"mergenet:idempotency:{owner}:{key}"


def taken_message(message_id: str) -> str:
    """When the reconciler first saw that a worker had taken a message."""
    return f"mergenet:taken:{message_id}"


def devices(ledger: str) -> str:
    """Hash of the leases of a ledger's devices, by device."""
    return f"mergenet:devices:{ledger}"


def device_queue(ledger: str) -> str:
    """Sorted set of who waits for devices of a ledger, scored by when they began to."""
    return f"mergenet:devices:{ledger}:queue"


def device_requests(ledger: str) -> str:
    """Hash of what those in a ledger's queue ask for."""
    return f"mergenet:devices:{ledger}:requests"
