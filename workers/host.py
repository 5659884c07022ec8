"""What this machine offers a trial, found without importing torch."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import psutil

from mergenet_core.jobs.devices import Device
from mergenet_core.jobs.records import WorkerInfo, now
from mergenet_core.settings import Settings

_REPORTED = ("mergenet-service", "torch", "transformers", "accelerate", "datasets", "rq")


def describe(name: str, devices: Sequence[Device]) -> WorkerInfo:
    """The worker as it is listed before it has any work."""
    count = f" ×{len(devices)}" if len(devices) > 1 and not devices[0].name.startswith("cpu") else ""
    return WorkerInfo(
        name=name,
        host=socket.gethostname(),
        ledger=ledger_name(devices),
        state="idle",
        device=f"{devices[0].name}{count}",
        devices=len(devices),
        memory_bytes=min(device.memory_bytes for device in devices),
        cpus=cpus(),
        seen_at=now(),
        versions=versions(),
    )


def devices(slots: int) -> tuple[Device, ...]:
    """The host's GPUs, told by NVML's `nvidia-smi`; without any, so many slots on its CPU."""
    found = tuple(_gpus())
    name, memory_bytes = f"cpu: {_processor()}", _memory_bytes()
    return found or tuple(Device(id=str(number), name=name, memory_bytes=memory_bytes) for number in range(slots))


def ledger_name(devices: Sequence[Device]) -> str:
    """Which ledger the devices are in: containers on one machine share its GPUs, not its CPU."""
    if devices[0].name.startswith("cpu"):
        return socket.gethostname()
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def environment(settings: Settings, workers: int = 1) -> dict[str, str]:
    """What training libraries read when they are imported, on a host with so many workers."""
    threads = str(settings.threads or max(1, cpus() // workers))
    offline = {} if settings.hub else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    names = ("MERGENET_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return offline | dict.fromkeys(names, threads) | {"TOKENIZERS_PARALLELISM": "false"}


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


def _gpus() -> Iterator[Device]:
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        query = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        for line in lines:
            uuid, name, mebibytes = (part.strip() for part in line.split(","))
            yield Device(id=uuid, name=f"cuda: {name}", memory_bytes=int(mebibytes) * 2**20)


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
