"""The service itself: health, readiness, workers, devices, the job schema, metrics for Prometheus."""

from __future__ import annotations

import shutil
from functools import cache
from typing import Annotated

from fastapi import APIRouter, Query, Response
from redis.exceptions import RedisError

from mergenet_core import __version__
from mergenet_core.errors import NotFound, Unavailable
from mergenet_core.records.workers import DeviceState, WorkerInfo
from mergenet_core.spec.parse import json_schema
from mergenet_core.store import device_leases, worker_registry
from service.schemas import Health, Leftover
from service.server import leftovers, prometheus
from service.server.auth import needs
from service.server.dependencies import Ctx
from service.server.problem_details import responses

router = APIRouter()
_schema = cache(json_schema)


@router.get("/healthz", tags=["health"], summary="Is the process up?")
def healthz() -> Health:
    """Answers as soon as the process does, without asking Redis."""
    return Health(version=__version__)


@router.get("/readyz", tags=["health"], summary="Can it take jobs?", responses={**responses(503)})
def readyz(context: Ctx) -> Health:
    """Redis answers and appends to disk, and the home folder can be created."""
    try:
        persistence = context.redis.info("persistence")
    except RedisError as error:
        raise Unavailable(f"Redis cannot be reached ({type(error).__name__}); check MERGENET_REDIS_URL") from None
    if not persistence.get("aof_enabled"):
        raise Unavailable("Redis does not append to disk, so jobs could be lost; start it with --appendonly yes")
    if persistence.get("aof_last_write_status", "ok") != "ok":
        raise Unavailable("Redis cannot append to its disk; free some space there")
    try:
        context.settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the home folder cannot be created: {error.strerror}; check MERGENET_HOME") from None
    return Health(version=__version__)


@router.get(
    "/workers",
    tags=["system"],
    dependencies=[needs("read")],
    responses={**responses(401, 403, 503)},
    summary="List workers",
)
def get_workers(context: Ctx) -> list[WorkerInfo]:
    """The workers that reported within the last minute, with the trial that each of them runs."""
    return worker_registry.workers(context.redis)


@router.get(
    "/devices",
    tags=["system"],
    dependencies=[needs("read")],
    responses={**responses(401, 403, 503)},
    summary="List devices",
)
def get_devices(context: Ctx) -> list[DeviceState]:
    """The devices of every host with a worker: which attempt holds each, and which are quarantined and why."""
    return device_leases.listing(context.redis, worker_registry.workers(context.redis))


@router.post(
    "/devices/{host}/{device}/clear",
    tags=["system"],
    dependencies=[needs("admin")],
    responses={**responses(401, 403, 404, 503)},
    summary="End a device's quarantine",
)
def clear_device(context: Ctx, host: str, device: str) -> list[DeviceState]:
    """Allow trials to use a quarantined device again, once an operator has made sure that no process uses it."""
    workers = worker_registry.workers(context.redis)
    # a host whose workers are all gone is known by its ledger's name alone
    ledgers = device_leases.ledgers(workers, host) or {host}
    cleared = [device_leases.clear(context.redis, ledger, device) for ledger in ledgers]
    if not any(cleared):
        raise NotFound(f"device {device} of {host} is not quarantined; GET /devices lists those that are")
    return device_leases.listing(context.redis, workers)


@router.post(
    "/gc",
    tags=["system"],
    dependencies=[needs("admin")],
    responses={**responses(401, 403, 422, 503)},
    summary="Find and remove folders of no job",
)
def collect_garbage(
    context: Ctx,
    delete: Annotated[bool, Query(description="Remove what was found; default: only list it.")] = False,
) -> list[Leftover]:
    """Folders that have no record and have not changed for an hour. Make sure first that Redis has lost nothing."""
    found = leftovers.find(context.settings.home, context.store)
    for folder in found if delete else ():
        shutil.rmtree(context.settings.job_folder(folder.job).path, ignore_errors=True)
    return found


@router.get("/schema/job", tags=["system"], summary="The job document's JSON Schema")
def get_schema() -> dict[str, object]:
    """JSON Schema 2020-12 of a job document, for editors and clients."""
    return {**_schema()}


@router.get(
    "/metrics",
    tags=["health"],
    dependencies=[needs("read")],
    responses={200: {"content": {"text/plain": {}}}, **responses(401, 403, 503)},
    summary="Metrics for Prometheus",
    response_class=Response,
)
def get_metrics(context: Ctx) -> Response:
    """Jobs by state, waiting trials, workers by state, and this process's requests with their latencies."""
    return Response(context.metrics.scrape(), media_type=prometheus.MEDIA_TYPE)
