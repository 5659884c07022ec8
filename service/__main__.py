"""`python -m service`: runs the API under uvicorn, with settings from the environment."""

from __future__ import annotations

import argparse
import logging
import socket

import uvicorn

from service.server.app import create_app
from service.server.settings import ServiceSettings

OPEN_STREAMS_SECONDS = 2
"""How long open event streams may delay a stop; their readers reconnect with Last-Event-ID."""


def main() -> None:
    """Run the API until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m service", description="The MergeNet API.")
    parser.add_argument("--fd", type=int, help="serve on this listening socket, not on MERGENET_HOST and MERGENET_PORT")
    arguments = parser.parse_args()
    settings = ServiceSettings()
    listening = _listen(settings) if arguments.fd is None else socket.socket(fileno=arguments.fd)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, settings.unread_seconds * 1000)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=OPEN_STREAMS_SECONDS,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _listen(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise SystemExit(f"{settings.host}:{settings.port} cannot be listened on ({error.strerror})") from None


if __name__ == "__main__":
    main()
