"""`python -P -m workers`: the workers of a host, configured by environment variables that begin with MERGENET_.

A host with several GPUs has one worker for each. With `--fleet` the workers take only trials on several hosts, which
they start through Ray.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import secrets
import socket
import sys
import time

from redis.exceptions import RedisError

from mergenet_core.errors import MergeNetError
from mergenet_core.processes.command import drop_relative_python_path
from mergenet_core.settings import Settings
from workers.host import capacity, pool, prewarm
from workers.logs import configure_logging
from workers.worker import TrialWorker

_log = logging.getLogger("workers")


def main() -> None:
    """Wait for Redis, then work until SIGTERM or SIGINT."""
    drop_relative_python_path()
    configure_logging()
    parser = argparse.ArgumentParser(
        prog="python -P -m workers", description="Workers; MERGENET_* variables configure them."
    )
    parser.add_argument("--fleet", action="store_true", help="take trials on several hosts, and no others")
    parser.add_argument("--one", action="store_true", help="a single worker, however many devices the host has")
    given = parser.parse_args()
    fleet, settings = given.fleet, Settings()
    address = _fleet_address(settings) if fleet else ""
    known = capacity.devices(settings)
    count = (settings.workers or 1) if fleet else capacity.workers(settings, known)
    if count > 1 and not given.one:
        try:
            pool.run(count, sys.argv[1:])
        except MergeNetError as error:
            raise SystemExit(error.message) from None
        return
    os.environ.update(capacity.environment(settings, None if fleet else capacity.threads(settings, known)))
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    info = capacity.describe(name, known)
    if fleet:
        own = {"fleet": True, "device": f"the fleet at {address}", "ledger": None, "devices": ()}
        info = info.model_copy(update=own)
    elif info.device.startswith("cpu"):
        prewarm.warm_up()
    _wait_for_redis(settings)
    TrialWorker(settings, info).work(logging_level="WARNING")


def _fleet_address(settings: Settings) -> str:
    """The address of the fleet's head. Raises: `SystemExit` with a sentence if something is not configured."""
    if importlib.util.find_spec("ray") is None:
        raise SystemExit("a fleet worker needs Ray; install the extra: pip install 'mergenet-service[worker,fleet]'")
    if settings.ray_address is None:
        raise SystemExit("set MERGENET_RAY_ADDRESS to HOST:PORT of the fleet's head (docs/fleet.md)")
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        raise SystemExit("set RAY_AUTH_TOKEN_PATH to the file with the fleet's token (docs/fleet.md)")
    return settings.ray_address


def _wait_for_redis(settings: Settings) -> None:
    redis = settings.redis(timeout_seconds=2, retries=0)
    logged_at = -60.0
    while True:
        try:
            redis.ping()
            return
        except RedisError as error:
            if time.monotonic() > logged_at + 30:
                logged_at = time.monotonic()
                _log.warning("waiting for Redis: %s", error)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
