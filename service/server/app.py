"""The API's application: `uvicorn --factory service.server.app:create_app`, or `python -m service`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from redis.exceptions import RedisError

from mergenet_core import __version__
from mergenet_core.store.reconciler import reconcile
from service.server import docs_page, problem_details, submission
from service.server.access_log import AccessLog
from service.server.dependencies import Context, connect
from service.server.problem_details import Problem
from service.server.routes import artifacts, events, jobs, keys, system
from service.server.security_headers import SecurityHeaders
from service.server.settings import ServiceSettings

log = logging.getLogger("mergenet.service")

_TAGS = [
    {"name": "jobs", "description": "Submit, check, list and control jobs."},
    {"name": "watch", "description": "Events, metrics and logs of a job."},
    {"name": "result", "description": "The merged checkpoint and its report."},
    {"name": "system", "description": "Workers, devices, and the schema of a job document."},
    {"name": "keys", "description": "API keys and their scopes."},
    {"name": "health", "description": "For orchestrators and Prometheus."},
]


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """The application; settings come from the environment unless given."""
    context = connect(settings or ServiceSettings())
    app = FastAPI(
        title="MergeNet Service",
        summary="Knowledge transfer between different models, as jobs that include their control.",
        version=__version__,
        openapi_tags=_TAGS,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.context = context
    problem_details.install(app)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(AccessLog, metrics=context.metrics)
    for module in (jobs, events, artifacts, system, keys):
        app.include_router(module.router)
    app.include_router(docs_page.router)
    _describe_problems(app)
    return app


_STOP_SECONDS = 1.0
"""How long the end of the process waits for the reconciler."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    if context.settings.insecure_no_auth:
        log.warning("MERGENET_INSECURE_NO_AUTH is set: requests need no key and may do everything")
    stop = threading.Event()
    # a daemon thread: a Redis that hangs must not keep the process from ending
    reconciler = threading.Thread(target=_reconcile, args=(context, stop), name="reconciler", daemon=True)
    reconciler.start()
    yield
    stop.set()
    await asyncio.to_thread(reconciler.join, _STOP_SECONDS)
    await context.stream_redis.aclose()


def _reconcile(context: Context, stop: threading.Event) -> None:
    every = context.settings.reconcile_seconds
    while not stop.wait(every):
        try:
            reconcile(context.store, context.queue_redis, every_seconds=every)
            submission.settle(context)
        except RedisError as error:
            log.warning("the queue could not be compared with the records: %s", error)
        except Exception:
            log.exception("the queue could not be compared with the records")


def _describe_problems(app: FastAPI) -> None:
    """Add the schema of a problem, which the routes' error responses refer to, to the OpenAPI document."""
    without_problems = app.openapi

    def with_problems() -> dict[str, object]:
        document = without_problems()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= {**schema.pop("$defs", {}), "Problem": schema}
        _drop_default_422(document)
        return document

    app.openapi = with_problems  # type: ignore[method-assign]


def _drop_default_422(document: dict[str, Any]) -> None:
    """Remove the error response that FastAPI adds to every route with parameters: ours are problems."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
