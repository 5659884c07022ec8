"""`python -m service`: the API under uvicorn, with the settings of the environment."""

from __future__ import annotations

import argparse

import uvicorn

from service.app import create_app
from service.settings import ServiceSettings

OPEN_STREAMS_SECONDS = 2
"""How long readers of event streams may hold up a stop; they go on elsewhere by Last-Event-ID."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m service", description="The MergeNet API.")
    parser.add_argument("--fd", type=int, help="serve on this listening socket instead of MERGENET_HOST and _PORT")
    arguments = parser.parse_args()
    settings = ServiceSettings()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        fd=arguments.fd,
        log_level="warning",
        timeout_graceful_shutdown=OPEN_STREAMS_SECONDS,
        server_header=False,
    )


if __name__ == "__main__":
    main()
