"""Accepts a job completely or not at all: plan, then folder, then record, then the message to the queue."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from redis.exceptions import RedisError

from mergenet_core.errors import FULL_DISK, NotFound, StorageFull
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.planning.new_job import new_job
from mergenet_core.planning.plan import Plan
from mergenet_core.records import state_machine
from mergenet_core.records.job import Job
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.retention import drop_trials
from mergenet_core.store import rq_queue
from mergenet_core.store.jobs import Created
from mergenet_core.store.worker_registry import workers
from service.server.dependencies import Context

log = logging.getLogger("mergenet.service")


def plan(context: Context, spec: JobSpec) -> Plan:
    """Plan a job with this server's models, data and workers. Raises: what `make_plan` raises."""
    settings = context.settings
    return make_plan(spec, settings.roots, settings.home, workers(context.redis))


def accept(context: Context, spec: JobSpec, owner: str, idempotency_key: str | None) -> Created:
    """Queue a job, or return the one that the same owner submitted with the same idempotency key.

    Raises: what `plan` raises, `IdempotencyConflict`, `StorageFull`.
    """
    if idempotency_key is not None and (before := context.store.find_submission(spec, owner, idempotency_key)):
        send(context, before)  # its models or data may be gone since: it is not planned again
        return Created(before, new=False)
    planned = plan(context, spec)
    job = state_machine.submit(new_job(spec, planned, owner))
    folder = context.settings.job_folder(job.id)
    context.store.announce(job.id)
    _write(folder.spec, spec)
    try:
        created = context.store.create(job, spec, planned.model_dump(mode="json"), idempotency_key=idempotency_key)
    except RedisError:
        found = _written(context, job.id)
        if found is None:
            raise
        created = Created(found, new=True)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    if not created.new:
        shutil.rmtree(folder.path, ignore_errors=True)
    send(context, created.job)
    return created


def send(context: Context, job: Job) -> None:
    """Send the job's queued trials to the queue; after a failure the reconciler sends them."""
    try:
        rq_queue.enqueue(context.queue_redis, job)
    except RedisError as error:
        log.warning("job %s is recorded; the reconciler will send its trials to the queue: %s", job.id, error)


def settle(context: Context) -> None:
    """Make folders agree with records. Raises: `RedisError` while it does not answer.

    Removes the folders of jobs whose write did not reach Redis, or at which a process was killed between folder and
    record, and clears those of succeeded jobs whose worker was killed before it did.
    """
    for job_id in context.store.unsettled():
        folder = context.settings.job_folder(job_id)
        try:
            job = context.store.get(job_id)
            if job.state == "succeeded":
                drop_trials(context.store.spec(job_id), folder, job)
        except NotFound:
            shutil.rmtree(folder.path, ignore_errors=True)
        context.store.settled(job_id)
    for job_id in list(context.unconfirmed):
        try:
            context.store.get(job_id)
        except NotFound:
            shutil.rmtree(context.settings.job_folder(job_id).path, ignore_errors=True)
        context.unconfirmed.discard(job_id)


def _written(context: Context, job_id: str) -> Job | None:
    """The job, if Redis wrote it and only the reply was lost; its folder is removed if Redis did not write it."""
    try:
        return context.store.get(job_id)
    except NotFound:
        shutil.rmtree(context.settings.job_folder(job_id).path, ignore_errors=True)
    except RedisError:
        context.unconfirmed.add(job_id)
    return None


def _write(path: Path, spec: JobSpec) -> None:
    try:
        path.parent.mkdir(parents=True)
        with path.open("w") as file:
            file.write(spec.model_dump_json(indent=1, exclude_defaults=True))
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        shutil.rmtree(path.parent, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise StorageFull("no space left for the job's folder; free disk space, then send the job again") from error
        raise
