"""Fixtures of all tests: a private redis-server, and a service with a real worker.

Each process of a parallel run (pytest-xdist) has its own.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError

from service.local.local_service import redis_binary

if TYPE_CHECKING:
    from tests import harness


_SLOWEST_FOLDERS = ("distributed", "workers", "faults", "cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the folders with the slowest files first, so that the processes of a parallel run end together."""

    def order(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return _SLOWEST_FOLDERS.index(folder) if folder in _SLOWEST_FOLDERS else len(_SLOWEST_FOLDERS)

    items.sort(key=order)


class RedisServer:
    """A private redis-server on a Unix socket. Its data are on disk, so they survive `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        options = {"port": "0", "unixsocket": str(self.socket), "dir": str(self.folder), "appendonly": "yes"}
        options |= {"appendfsync": "always", "save": ""}
        arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
        self.process = subprocess.Popen([redis_binary(), *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client().ping()
                return
            except (ConnectionError, BusyLoadingError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def client(self, *, decode: bool = True) -> Redis:
        return Redis(unix_socket_path=str(self.socket), decode_responses=decode)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[RedisServer]:
    # the path of a Unix socket must be short, so it is not in pytest's folder
    with tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        yield server
        server.kill()


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> RedisServer:
    """A running, empty Redis."""
    _redis_server.client().flushall()
    return _redis_server


@pytest.fixture
def redis(redis_server: RedisServer) -> Redis:
    """A decoding connection to an empty Redis."""
    return redis_server.client()


@pytest.fixture(scope="session")
def lab_redis() -> Iterator[RedisServer]:
    """The lab's Redis, separate because the tests of faults kill it."""
    with tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        yield server
        server.kill()


@pytest.fixture(scope="session")
def shared_lab(lab_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Lab]:
    from tests import harness  # here, because only the tests of workers need its imports

    with harness.lab(lab_redis, tmp_path_factory.mktemp("lab") / "lab") as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: harness.Lab) -> harness.Lab:
    """A service with one real worker, shared by all tests because it takes seconds to start."""
    shared_lab.want_workers(1)
    return shared_lab


@pytest.fixture(scope="session")
def final_loss(shared_lab: harness.Lab) -> float:
    """The final loss of `harness.document()` in a run without faults."""
    from tests import harness

    shared_lab.want_workers(1)
    job = shared_lab.wait_for_state(shared_lab.submit(harness.document()), "succeeded")
    return harness.result_of(job).final_loss
