"""Several workers of one host: each a process of its own, started again when it dies, all ended together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from mergenet_core.processes import die_with

_TICK_SECONDS = 0.5
_PAUSE_SECONDS = 2.0
"""Before a worker that died is started again."""
_log = logging.getLogger("workers.host.pool")


def run(count: int, options: Sequence[str] = ()) -> None:
    """Keep so many workers running until SIGTERM or SIGINT; a second one cuts their checkpoints short."""
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for child in children:
            if child is not None and child.poll() is None:
                child.send_signal(signal.SIGTERM)

    children: list[subprocess.Popen[bytes] | None] = [_start(options) for _ in range(count)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    died_at = [0.0] * count
    while not asked or any(child is not None and child.poll() is None for child in children):
        time.sleep(_TICK_SECONDS)
        for place, child in enumerate(children):
            if child is not None and child.poll() is not None and not asked:
                _log.warning("worker %d ended with status %s and is started again", place, child.returncode)
                children[place], died_at[place] = None, time.monotonic()
            if child is None and not asked and time.monotonic() > died_at[place] + _PAUSE_SECONDS:
                children[place] = _start(options)


def _start(options: Sequence[str]) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", "workers", "--one", *options],
        start_new_session=True,
        preexec_fn=lambda: die_with(parent, signal.SIGTERM),
    )
