"""`python -m workers`: the workers of a host, set up by environment variables that begin with MERGENET_."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time

from redis.exceptions import RedisError

from mergenet_core.jobs import devices
from mergenet_core.settings import Settings
from workers import host, pool, warm
from workers.worker import TrialWorker

_log = logging.getLogger("workers")


def main() -> None:
    """Wait for Redis, then work until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings()
    known = host.devices(settings.cpu_slots or host.cpus())
    count = settings.workers or (1 if known[0].name.startswith("cpu") else len(known))
    os.environ.update(_environment(settings, count))
    if count > 1:
        pool.run(count)
        return
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    me = host.describe(name, known)
    if me.device.startswith("cpu"):
        warm.warm_up()
    _wait_for_redis(settings)
    devices.announce(settings.redis(), host.ledger_name(known), known)
    TrialWorker(settings, me).work(logging_level="WARNING")


def _environment(settings: Settings, workers: int) -> dict[str, str]:
    """What training libraries read when they are imported."""
    threads = str(settings.threads or max(1, host.cpus() // workers))
    offline = {} if settings.hub else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    names = ("MERGENET_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return offline | dict.fromkeys(names, threads) | {"TOKENIZERS_PARALLELISM": "false"}


def _wait_for_redis(settings: Settings) -> None:
    redis = settings.redis(timeout_seconds=2, retries=0)
    said_at = -60.0
    while True:
        try:
            redis.ping()
            return
        except RedisError as error:
            if time.monotonic() > said_at + 30:
                said_at = time.monotonic()
                _log.warning("waiting for Redis: %s", error)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
