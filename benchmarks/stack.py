"""A complete service for a benchmark, started as a user would start it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.client.profile import Profile, read_profile

START_SECONDS = 90


@contextmanager
def running_service(home: Path, *, workers: int, folder: Path) -> Iterator[Profile]:
    """`mergenet up` with its home in `home` and the models and data of `folder`; all its processes end on leaving."""
    arguments = ["up", "--home", str(home), "--port", "0", "--workers", str(workers)]
    arguments += ["--models", str(folder / "models"), "--data", str(folder / "data")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` also runs on SIGTERM
    home.mkdir(parents=True, exist_ok=True)
    (home / "client.json").unlink(missing_ok=True)
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "service.cli.main", *arguments], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while (profile := read_profile(home)) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the service did not start; see {home / 'up.log'}")
                time.sleep(0.1)
            yield profile
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
