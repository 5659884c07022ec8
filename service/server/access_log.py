"""One line a request, with who asked: what an operator reads when something was cancelled and nobody did it."""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("mergenet.access")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class AccessLog:
    """Logs method, path, status, time and the key's name when an answer has been sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, and log it."""
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            who = scope.get("state", {}).get("key_name", "-")
            milliseconds = 1000 * (time.perf_counter() - began)
            # repr: a path may hold line breaks, percent-decoded
            log.info("%s %r %d %.1f ms %s", scope["method"], scope["path"], status, milliseconds, who)
