"""A fleet on this machine: a head and hosts with addresses of their own on loopback, started as an operator does."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mergenet_core.store import worker_registry
from tests.harness import Lab, wait

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "fleet" / "host.sh"
SLOTS = 1
SILENCE_SECONDS = 20


@dataclass
class Fleet:
    """A head without devices, and hosts with `SLOTS` each."""

    lab: Lab
    folder: Path
    net: str
    address: str
    hosts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return self.lab.environment | {
            "MERGENET_RAY_ADDRESS": self.address,
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "MERGENET_SILENCE_SECONDS": str(SILENCE_SECONDS),
        }

    def start(self, kind: str) -> str:
        """Start a host, and return its address as soon as it is one of the fleet."""
        address = f"{self.net}.{len(self.hosts) + 1}"
        self.restart(address, kind)
        return address

    def restart(self, address: str, kind: str) -> None:
        """Start a host with that address, as soon as it is one of the fleet."""
        index = int(address.rpartition(".")[2]) - 1
        log = (self.folder / f"host-{index}.log").open("wb")
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MERGENET_FLEET_HOST": address,
            "MERGENET_FLEET_TEMP": str(self.folder / str(index)),
        }
        self.hosts[address] = subprocess.Popen(
            ["sh", str(SCRIPT), kind],
            env={**os.environ, **self.environment, **own, "MERGENET_CPU_SLOTS": str(SLOTS), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        wait(lambda: b"Ray runtime started" in self._log(index), f"host {index}", lambda: self._log(index).decode())

    def lose(self, address: str) -> None:
        """SIGKILL a host's daemon, as if its machine had gone."""
        host = self.hosts.pop(address)
        tree = psutil.Process(host.pid).children(recursive=True)
        for process in tree:
            if process.name() == "raylet":
                process.kill()
        self.hosts[f"lost {address}"] = host

    def start_worker(self, module: str = "workers", working_directory: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a real fleet worker, and return it as soon as it is listed."""
        known = {worker.name for worker in worker_registry.workers(self.lab.store.redis)}
        worker = self.lab.start_worker(
            "--fleet", module=module, working_directory=working_directory, **self.environment
        )

        def listed() -> bool:
            assert worker.poll() is None, self.lab.explain()
            names = {each.name for each in worker_registry.workers(self.lab.store.redis)} - known
            return any(int(name.split("-")[-2]) == worker.pid for name in names)

        wait(listed, "a fleet worker", self.lab.explain)
        self.workers.append(worker)
        return worker

    def want_worker(self, count: int = 1, module: str = "workers") -> None:
        """Make exactly `count` fleet workers of that module run."""
        alive = [worker for worker in self.workers if worker.poll() is None]
        if len(alive) != count or any(module not in psutil.Process(worker.pid).cmdline() for worker in alive):
            self.drain()
            for _ in range(count):
                self.start_worker(module)

    def drain(self) -> None:
        """Stop the fleet workers as an operator does."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            worker.wait(30)

    def close(self) -> None:
        """End what was started, Ray's processes too, each by its id."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(20)
        for host in self.hosts.values():
            for process in _session(host.pid):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            host.wait()

    def _log(self, index: int) -> bytes:
        return (self.folder / f"host-{index}.log").read_bytes()


@contextlib.contextmanager
def fleet(lab: Lab, hosts: int = 2) -> Iterator[Fleet]:
    """A fleet that leaves no process behind."""
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "token").write_text(secrets.token_hex(24))
        net = f"127.{random.randrange(2, 250)}.{random.randrange(1, 250)}"
        with socket.create_server((f"{net}.1", 0)) as free:
            address = f"{net}.1:{free.getsockname()[1]}"
        found = Fleet(lab, Path(folder), net, address)
        try:
            found.start("head")
            for _ in range(hosts):
                found.start("node")
            yield found
        finally:
            found.close()
            shutil.rmtree(folder, ignore_errors=True)


def _session(leader: int) -> list[psutil.Process]:
    """Processes of a session, the leader last; Ray's daemons and workers stay in the one they were started in."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return sorted(found, key=lambda process: process.pid == leader)
