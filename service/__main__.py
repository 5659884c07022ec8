"""`python -m service`: the API under uvicorn, with the settings of the environment."""

from __future__ import annotations

import argparse
import logging

import uvicorn

from service.server.app import create_app
from service.server.settings import ServiceSettings

OPEN_STREAMS_SECONDS = 2
"""How long readers of event streams may hold up a stop; they go on elsewhere by Last-Event-ID."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m service", description="The MergeNet API.")
    parser.add_argument("--fd", type=int, help="serve on this listening socket instead of MERGENET_HOST and _PORT")
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
