"""Errors as RFC 9457 `application/problem+json`: a stable type, a sentence, and pointers to the wrong fields."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from redis.exceptions import (
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

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
    "too-many-requests": 429,
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
_CODE_OF_STATUS = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    415: "unsupported-media-type",
    416: "range-not-satisfiable",
}
_TRANSIENT = (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError, MasterDownError)


class ProblemError(BaseModel):
    """One wrong field: where it is and what to change."""

    pointer: str
    """A JSON pointer into the body, or `?name` for a query parameter."""
    message: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    """`urn:mergenet:problem:` followed by a stable code."""
    title: str
    status: int
    detail: str
    instance: str
    errors: list[ProblemError] = []


_TITLES = {
    401: "No valid key",
    403: "The key lacks the scope",
    404: "Not found",
    409: "Not possible in this state",
    413: "Body too long",
    415: "Another media type",
    416: "No such range",
    422: "Invalid request",
    429: "Too many requests",
    503: "Redis does not answer",
    507: "The disk is full",
}


def responses(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Descriptions of a route's error responses for the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _TITLES[status], "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Install handlers that answer every exception with a problem."""
    app.add_exception_handler(MergeNetError, _mergenet)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RedisError, _redis)
    app.add_exception_handler(Exception, _unexpected)


def is_transient(error: RedisError) -> bool:
    """Whether Redis may accept the same command later."""
    # redis-py has no class for these two: a full disk, and too few replicas
    return isinstance(error, _TRANSIENT) or any(word in str(error) for word in ("MISCONF", "NOREPLICAS"))


def _mergenet(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MergeNetError)
    status = STATUS.get(error.code, 500)
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="mergenet"'
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_SECONDS)
    return _problem(request, status, error.code, error.message, error.errors, headers)


def _parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = tuple(_field_error(details) for details in error.errors())
    return _problem(request, 422, "request-invalid", errors[0].message, errors)


def _field_error(details: ErrorDetails) -> FieldError:
    source, *names = [str(name) for name in details["loc"]]
    name = ".".join(names)
    pointer = {"query": f"?{name}", "header": name}.get(source, "".join(f"/{name}" for name in names))
    message = details["msg"]
    given = repr(details.get("input"))[:80]
    return FieldError(pointer, f"{name or source}: {message[:1].lower()}{message[1:]} (given: {given})")


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; /docs lists the endpoints"
    headers = {**(error.headers or {})}
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_allowed(request.app.routes, request.scope)))
        detail = f"{request.url.path} does not support {request.method}; it supports {headers['Allow']}"
    code = _CODE_OF_STATUS.get(error.status_code, "http-error")
    return _problem(request, error.status_code, code, detail, headers=headers)


def _allowed(routes: Iterable[BaseRoute], scope: Scope) -> set[str]:
    """The methods of all routes at a path; the router itself names those of the first that it finds."""
    found: set[str] = set()
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            found |= _allowed(router.routes, scope)
        elif isinstance(route, Route) and route.matches(scope)[0] != Match.NONE:
            found |= route.methods or set()
    return found


def _redis(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RedisError)
    if not is_transient(error):
        return _unexpected(request, error)
    log.warning("redis: %s", error)
    detail = "Redis cannot be reached or written at present, and may not have carried out this request; send it again"
    return _mergenet(request, Unavailable(detail))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error at %s %s", request.method, request.url.path, exc_info=error)
    detail = "the service failed with an internal error; its log has the details"
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
        errors=[ProblemError(pointer=error.pointer, message=error.message) for error in errors],
    )
    return JSONResponse(
        problem.model_dump(exclude_defaults=True), status, headers, media_type="application/problem+json"
    )
