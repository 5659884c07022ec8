"""`python -m service`: runs the API under uvicorn, with settings from the environment."""

from __future__ import annotations

import argparse
import logging

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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        fd=arguments.fd,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=OPEN_STREAMS_SECONDS,
        server_header=False,
    )


if __name__ == "__main__":
    main()
