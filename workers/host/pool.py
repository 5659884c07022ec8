"""Several workers of one host: each a process of its own, started again when it ends, all stopped together."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from types import FrameType

from mergenet_core.errors import Unavailable
from mergenet_core.processes.command import python_command
from mergenet_core.processes.kept_process import KeptProcess

_TICK_SECONDS = 0.1
_log = logging.getLogger("workers.host.pool")


def run(count: int, options: Sequence[str] = ()) -> None:
    """Keep `count` workers running until SIGTERM or SIGINT; a second signal cuts their checkpoints short.

    Raises: `Unavailable` when a worker keeps ending right after its start; the others are drained first.
    """
    command = python_command("workers", "--one", *options)
    workers = [KeptProcess(f"worker {index}", command, dict(os.environ)) for index in range(count)]
    requests = 0

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal requests
        requests += 1  # nothing else, so that no worker can be started without being stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        for worker in workers:
            worker.start()
        while not requests:
            for worker in workers:
                worker.keep_alive()
            time.sleep(_TICK_SECONDS)
    except Unavailable:
        requests += 1
        raise
    finally:
        sent = 0
        while any(worker.alive() for worker in workers):
            if sent < requests:
                sent = requests
                for worker in workers:
                    worker.ask_to_end()
            time.sleep(_TICK_SECONDS)
