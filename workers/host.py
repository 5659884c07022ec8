"""What this machine offers a trial, found without importing torch."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from mergenet_core.jobs.records import WorkerInfo, now
from mergenet_core.settings import Settings

_REPORTED = ("mergenet-service", "torch", "transformers", "accelerate", "datasets", "rq")


def describe(name: str) -> WorkerInfo:
    """The worker as it is listed before it has any work."""
    device, memory_bytes = _device()
    return WorkerInfo(
        name=name,
        host=socket.gethostname(),
        state="idle",
        device=device,
        memory_bytes=memory_bytes,
        cpus=cpus(),
        seen_at=now(),
        versions=versions(),
    )


def environment(settings: Settings) -> dict[str, str]:
    """What training libraries read when they are imported."""
    threads = str(settings.threads or cpus())
    offline = {} if settings.hub else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return offline | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def versions() -> dict[str, str]:
    """Versions of Python and of what matters to a training."""
    found = {"python": platform.python_version()}
    for package in _REPORTED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _device() -> tuple[str, int]:
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        name, mebibytes = lines[0].rsplit(",", 1)
        return f"cuda: {name.strip()}" + (f" ×{len(lines)}" if len(lines) > 1 else ""), int(mebibytes) * 2**20
    return f"cpu: {_processor()}", _memory_bytes()


def _processor() -> str:
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.machine()


def _memory_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # `max` stands for no limit
            return min(total, int(Path(path).read_text()))
    return total
