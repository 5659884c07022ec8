"""Logs and counts every request once it has been answered.

The log names the API key, so that an operator can see who cancelled a job.
"""

from __future__ import annotations

import logging
import time

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.server.prometheus import UNMATCHED, ServiceMetrics

log = logging.getLogger("mergenet.access")
_NOT_LOGGED = frozenset({"/healthz", "/readyz", "/metrics"})


class AccessLog:
    """ASGI middleware: logs method, path, status, time and key name, and counts the request for Prometheus."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the application, and record it when it has ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        finally:
            seconds = time.perf_counter() - began
            route = scope.get("route")
            template = route.path if isinstance(route, Route) else UNMATCHED
            self.metrics.count_request(scope["method"], template, status, seconds)
            if scope["path"] not in _NOT_LOGGED:
                key_name = scope.get("state", {}).get("key_name", "-")
                # repr: a percent-decoded path may contain line breaks
                log.info("%s %r %d %.1f ms %s", scope["method"], scope["path"], status, 1000 * seconds, key_name)
