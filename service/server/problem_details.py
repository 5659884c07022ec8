"""Every error as RFC 9457 `application/problem+json`: a stable type, a sentence, and pointers to what is at fault."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import (
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)
from starlette.exceptions import HTTPException

from mergenet_core.errors import FieldError, MergeNetError, Unavailable
from service.schemas import PROBLEM_TYPE

log = logging.getLogger("mergenet.service")

RETRY_SECONDS = 5
STATUS = {
    "unauthenticated": 401,
    "forbidden": 403,
    "not-found": 404,
    "state-conflict": 409,
    "stale-attempt": 409,
    "body-too-large": 413,
    "spec-invalid": 422,
    "path-refused": 422,
    "model-refused": 422,
    "data-refused": 422,
    "pairing-refused": 422,
    "too-large": 422,
    "idempotency-conflict": 422,
    "unavailable": 503,
    "storage-full": 507,
}
_OF_STATUS = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    415: "unsupported-media-type",
    416: "range-not-satisfiable",
}
_TRANSIENT = (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError, MasterDownError)


class ProblemError(BaseModel):
    """One fault: where it is and what to change."""

    pointer: str
    """A JSON pointer into the body, or `?name` for a query parameter."""
    message: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    """`urn:mergenet:problem:` and a stable code."""
    title: str
    status: int
    detail: str
    instance: str
    errors: list[ProblemError] = []


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of a route's errors."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    titles = {401: "No known key", 403: "The key lacks the scope", 404: "No such thing", 409: "Not in this state"}
    titles |= {413: "Body too long", 416: "No such range", 422: "Refused, with what to change", 503: "Redis is away"}
    return {status: {"description": titles[status], "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every exception with a problem."""
    app.add_exception_handler(MergeNetError, _mergenet)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RedisError, _redis)
    app.add_exception_handler(Exception, _unexpected)


def is_transient(error: RedisError) -> bool:
    """Whether Redis may well take the same command a moment later."""
    # redis-py has no class for these two: its disk is full, its replicas are away
    return isinstance(error, _TRANSIENT) or any(word in str(error) for word in ("MISCONF", "NOREPLICAS"))


def _mergenet(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MergeNetError)
    status = STATUS.get(error.code, 500)
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="mergenet"'
    if status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return _problem(request, status, error.code, error.message, error.errors, headers)


def _parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = tuple(_parameter(details) for details in error.errors())
    return _problem(request, 422, "request-invalid", faults[0].message, faults)


def _parameter(details: Mapping[str, Any]) -> FieldError:
    place, *names = [str(part) for part in details["loc"]]
    name = ".".join(names)
    pointer = {"query": f"?{name}", "header": name}.get(place, "".join(f"/{part}" for part in names))
    message = str(details["msg"])
    given = repr(details.get("input"))[:80]
    return FieldError(pointer, f"{name or place}: {message[:1].lower()}{message[1:]} (given: {given})")


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; /docs lists what there is"
    elif error.status_code == 405:
        detail = f"{request.method} is not answered at {request.url.path}; see the Allow header"
    code = _OF_STATUS.get(error.status_code, "http-error")
    return _problem(request, error.status_code, code, detail, headers=error.headers)


def _redis(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RedisError)
    if not is_transient(error):
        return _unexpected(request, error)
    log.warning("redis: %s", error)
    detail = "the job store cannot be reached or written just now; nothing was changed by this request, send it again"
    return _mergenet(request, Unavailable(detail))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error at %s %s", request.method, request.url.path, exc_info=error)
    detail = "the service met an error of its own; its log has the details"
    return _problem(request, 500, "internal", detail)


def _problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    errors: tuple[FieldError, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(
        type=PROBLEM_TYPE + code,
        title=code.replace("-", " ").capitalize(),
        status=status,
        detail=detail,
        instance=request.url.path,
        errors=[ProblemError(pointer=fault.pointer, message=fault.message) for fault in errors],
    )
    return JSONResponse(
        problem.model_dump(exclude_defaults=True), status, headers, media_type="application/problem+json"
    )
