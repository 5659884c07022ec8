"""The API: `uvicorn --factory service.server.app:create_app`, or `python -m service`. It never imports torch."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from redis.exceptions import RedisError

from mergenet_core.store import rq_queue
from service.server import problem_details, submission
from service.server.access_log import AccessLog
from service.server.dependencies import Context, connect
from service.server.problem_details import Problem
from service.server.routes import artifacts, events, jobs, system
from service.server.settings import ServiceSettings

log = logging.getLogger("mergenet.service")

_TAGS = [
    {"name": "jobs", "description": "Post a job, watch over it, steer it."},
    {"name": "watch", "description": "What a job says while it runs: events, metrics, logs."},
    {"name": "result", "description": "The merged checkpoint and the proof beside it."},
    {"name": "system", "description": "Workers, and the schema of a job document."},
    {"name": "keys", "description": "Who may do what."},
    {"name": "health", "description": "For orchestrators and Prometheus."},
]


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """The application; settings come from the environment unless given."""
    context = connect(settings or ServiceSettings())
    app = FastAPI(
        title="MergeNet Service",
        summary="Knowledge transfer between unlike models, as jobs with their control beside them.",
        version=system.version(),
        openapi_tags=_TAGS,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.context = context
    problem_details.install(app)
    app.add_middleware(AccessLog)
    for part in (jobs, events, artifacts, system):
        app.include_router(part.router)
    _describe_problems(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    if context.settings.insecure_no_auth:
        log.warning("MERGENET_INSECURE_NO_AUTH is set: everyone who reaches this server may do everything")
    stop = threading.Event()
    # a daemon: a Redis that hangs must not keep the process from ending
    reconciler = threading.Thread(target=_reconcile, args=(context, stop), name="reconciler", daemon=True)
    reconciler.start()
    yield
    stop.set()
    await context.stream_redis.aclose()


def _reconcile(context: Context, stop: threading.Event) -> None:
    every = context.settings.reconcile_seconds
    while not stop.wait(every):
        try:
            rq_queue.reconcile(context.store, context.queue_redis, every_seconds=every)
            submission.settle(context)
        except RedisError as error:
            log.warning("queue and records were not compared: %s", error)
        except Exception:
            log.exception("queue and records were not compared")


def _describe_problems(app: FastAPI) -> None:
    """Put the problem's schema into the OpenAPI document, which every route's errors refer to."""
    plain = app.openapi

    def with_problems() -> dict[str, object]:
        document = plain()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = document.setdefault("components", {}).setdefault("schemas", {})
        parts |= {**schema.pop("$defs", {}), "Problem": schema}
        return document

    app.openapi = with_problems  # type: ignore[method-assign]
