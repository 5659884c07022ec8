"""Devices, memory and threads that this host has for trials, found without importing torch."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mergenet_core.records.record import now
from mergenet_core.records.workers import Device, WorkerInfo
from mergenet_core.settings import Settings
from workers.host import memory
from workers.host.gpus import gpus

_REPORTED = ("mergenet-service", "torch", "transformers", "accelerate", "datasets", "rq")


def describe(name: str, devices: Sequence[Device]) -> WorkerInfo:
    """The entry of an idle worker in the list of workers."""
    count = f" ×{len(devices)}" if len(devices) > 1 and not devices[0].name.startswith("cpu") else ""
    return WorkerInfo(
        name=name,
        host=socket.gethostname(),
        ledger=ledger_name(devices),
        state="idle",
        device=f"{devices[0].name}{count}",
        devices=tuple(devices),
        memory_bytes=min(device.memory_bytes for device in devices),
        cpus=cpus(),
        seen_at=now(),
        versions=versions(),
    )


def has_cpu_slots(devices: Sequence[Device]) -> bool:
    """Whether a host's devices are slots on its CPU, and not GPUs."""
    return devices[0].name.startswith("cpu")


def devices(settings: Settings) -> tuple[Device, ...]:
    """The host's GPUs; if it has none, the slots on its CPU."""
    if found := gpus():
        return found
    name, memory_bytes = f"cpu: {_processor()}", memory.total_bytes()
    slots = range(settings.cpu_slots or cpus())
    return tuple(Device(id=str(number), name=name, memory_bytes=memory_bytes) for number in slots)


def workers(settings: Settings, devices: Sequence[Device]) -> int:
    """How many trials this host trains at the same time."""
    return settings.workers or (1 if has_cpu_slots(devices) else len(devices))


def ledger_name(devices: Sequence[Device]) -> str:
    """The name under which Redis keeps who holds the devices: containers on one machine share its GPUs, not its CPU."""
    if has_cpu_slots(devices):
        return socket.gethostname()
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def threads(settings: Settings, devices: Sequence[Device], devices_per_trial: int = 1) -> int:
    """CPU threads for each process of a trial: the cores, divided evenly among the processes that run at once."""
    processes = min(len(devices), workers(settings, devices) * devices_per_trial)
    return settings.threads or max(1, cpus() // processes)


def environment(settings: Settings, threads: int | None = None) -> dict[str, str]:
    """Environment that training libraries read when they are imported; without `threads` they use all cores."""
    count = str(threads or settings.threads or cpus())
    offline = {} if settings.hub else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return offline | dict.fromkeys(names, count) | {"TOKENIZERS_PARALLELISM": "false"}


def cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a training depends on."""
    found = {"python": platform.python_version()}
    for package in _REPORTED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _processor() -> str:
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.machine()
