"""The service itself: health, readiness, workers, keys, the job schema, numbers for Prometheus."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.exceptions import RedisError

from mergenet_core.errors import NotFound, Unavailable
from mergenet_core.records.api_keys import Scope
from mergenet_core.records.workers import DeviceState, WorkerInfo
from mergenet_core.spec.parse import json_schema
from mergenet_core.store import api_keys, device_leases, worker_registry
from service.schemas import Health, KeyView, NewKey
from service.server.auth import needs
from service.server.dependencies import Ctx
from service.server.problem_details import responses
from service.server.request_body import Body, json_object

router = APIRouter()
_schema = cache(json_schema)


class KeyRequest(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w.@-]+$")
    scopes: list[Scope] = Field(min_length=1)


@router.get("/healthz", tags=["health"], summary="Is the process up?")
def healthz() -> Health:
    """Answers as soon as the process does; asks nobody else."""
    return Health(version=version())


@router.get("/readyz", tags=["health"], summary="Can it take jobs?", responses={**responses(503)})
def readyz(context: Ctx) -> Health:
    """Redis answers and appends to disk, and the home folder can be written."""
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
        raise Unavailable(f"the home folder cannot be made: {error.strerror}; check MERGENET_HOME") from None
    return Health(version=version())


@router.get(
    "/workers",
    tags=["system"],
    dependencies=[needs("read")],
    responses={**responses(401, 403, 503)},
    summary="List workers",
)
def get_workers(context: Ctx) -> list[WorkerInfo]:
    """The workers that said they are alive within the last minute, and what each does."""
    return worker_registry.workers(context.redis)


@router.get(
    "/devices",
    tags=["system"],
    dependencies=[needs("read")],
    responses={**responses(401, 403, 503)},
    summary="List devices",
)
def get_devices(context: Ctx) -> list[DeviceState]:
    """The devices of every host with a worker, who holds them, and why some are lent to nobody."""
    return device_leases.listing(context.redis, worker_registry.workers(context.redis))


@router.post(
    "/devices/{host}/{device}/clear",
    tags=["system"],
    dependencies=[needs("admin")],
    responses={**responses(401, 403, 404, 503)},
    summary="Lend a quarantined device again",
)
def clear_device(context: Ctx, host: str, device: str) -> list[DeviceState]:
    """After an operator has seen to it that nothing runs on it any more."""
    workers = worker_registry.workers(context.redis)
    # a host whose workers are all gone is known by its ledger's name alone
    cleared = [
        device_leases.clear(context.redis, ledger, device) for ledger in device_leases.ledgers(workers, host) or {host}
    ]
    if not any(cleared):
        raise NotFound(f"device {device} of {host} is not quarantined; GET /devices lists those that are")
    return device_leases.listing(context.redis, workers)


@router.get("/schema/job", tags=["system"], summary="The job document's JSON Schema")
def get_schema() -> dict[str, Any]:
    """JSON Schema 2020-12, for editors and clients."""
    return _schema()


@router.get(
    "/keys", tags=["keys"], dependencies=[needs("admin")], responses={**responses(401, 403, 503)}, summary="List keys"
)
def list_keys(context: Ctx) -> list[KeyView]:
    """Names and scopes; the keys themselves are stored nowhere."""
    return [KeyView(name=key.name, scopes=list(key.scopes)) for key in api_keys.keys(context.redis)]


@router.post(
    "/keys",
    tags=["keys"],
    status_code=201,
    dependencies=[needs("admin")],
    responses={**responses(401, 403, 413, 422, 503)},
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": KeyRequest.model_json_schema()}}}
    },
    summary="Make a key",
)
def post_key(context: Ctx, body: Body) -> NewKey:
    """Make a key; it is shown this once. A key of the same name is replaced."""
    try:
        wanted = KeyRequest.model_validate(json_object(body))
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None
    key = api_keys.create_key(context.redis, wanted.name, tuple(wanted.scopes))
    return NewKey(name=wanted.name, scopes=list(wanted.scopes), key=key)


@router.delete(
    "/keys/{name}",
    tags=["keys"],
    status_code=204,
    dependencies=[needs("admin")],
    responses={**responses(401, 403, 404, 503)},
    summary="Revoke a key",
)
def delete_key(context: Ctx, name: str) -> None:
    """Forget a key; it is refused from now on."""
    api_keys.revoke_keys(context.redis, name, required=True)


@router.get(
    "/metrics",
    tags=["health"],
    dependencies=[needs("read")],
    responses={200: {"content": {"text/plain": {}}}, **responses(401, 403, 503)},
    summary="Numbers for Prometheus",
    response_class=Response,
)
def get_metrics(context: Ctx) -> Response:
    """Jobs by state, trials that wait, workers by state, requests answered."""
    from service.server import prometheus  # only who is scraped needs it; a start does not

    return Response(prometheus.scrape(context), media_type=prometheus.MEDIA_TYPE)


@cache
def version() -> str:
    """The installed version, or `0` when it runs from a source tree that was never installed."""
    try:
        return metadata.version("mergenet-service")
    except metadata.PackageNotFoundError:
        return "0"
