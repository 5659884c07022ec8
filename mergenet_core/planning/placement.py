"""Where a job's trials can run: which workers suit and fit, and which strategy `auto` becomes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mergenet_core.errors import TooLarge
from mergenet_core.planning.memory import CONTEXT_BYTES
from mergenet_core.planning.plan import Estimate, ProcessMemory, Strategy
from mergenet_core.records.workers import WorkerInfo
from mergenet_core.spec.job import JobSpec, ResourcesSpec

SPREAD: tuple[Strategy, ...] = ("ddp", "zero2", "fsdp2", "zero3")
"""The order in which `auto` tries strategies, fastest first: the first two exchange twice the model in a step, the
others three times."""


def suitable(resources: ResourcesSpec, workers: Sequence[WorkerInfo]) -> list[WorkerInfo]:
    """The workers that could take a job's trials."""
    several = resources.nodes > 1
    return [
        worker
        for worker in workers
        if worker.fleet == several
        and (several or len(worker.devices) >= resources.devices)
        and (resources.device != "cuda" or worker.device.startswith("cuda"))
    ]


def fits(needed: ProcessMemory, resources: ResourcesSpec, worker: WorkerInfo) -> bool:
    """Whether a process fits a device; processes on a CPU share the host's memory."""
    if _on_cpu(resources, worker):
        return needed.memory_bytes * resources.devices <= worker.memory_bytes
    return needed.device_bytes + CONTEXT_BYTES <= worker.memory_bytes


def required_bytes(needed: ProcessMemory, resources: ResourcesSpec, workers: Sequence[WorkerInfo]) -> int:
    """Bytes to compare with a measured peak: the device's where trials would get a GPU, else the process's."""
    able = suitable(resources, workers)
    if able and not any(_on_cpu(resources, worker) for worker in able):
        return needed.device_bytes + CONTEXT_BYTES
    return needed.memory_bytes


def choose_strategy(found: Estimate, spec: JobSpec, workers: Sequence[WorkerInfo]) -> Strategy:
    """The strategy of a job: its own, or for `auto` the fastest that fits the smallest device that may get a trial.

    One process trains alone. Several take the first of `SPREAD` that fits; where shapes or machines are not known, DDP
    cannot be trusted to fit and FSDP2, which needs least, is taken. Offloading and DeepSpeed's settings ask for ZeRO;
    `lpka-raw` for whole weights.
    """
    resources = spec.resources
    if resources.strategy != "auto":
        return resources.strategy
    zero = resources.offload != "none" or resources.deepspeed is not None
    if resources.devices * resources.nodes == 1 and not zero:
        return "single"
    order: tuple[Strategy, ...] = ("zero2", "zero3") if zero else SPREAD
    if resources.offload == "parameters":
        return "zero3"
    if spec.transfer.method == "lpka-raw":
        order = ("zero2",) if zero else ("ddp", "zero2")
    able = suitable(resources, workers)
    for name in order:
        needed = found.under(name)
        if needed is not None and able and all(fits(needed, resources, worker) for worker in able):
            return name
    if "fsdp2" in order:
        return "fsdp2"
    return order[-1]


def check_machine(
    found: Estimate, strategy: Strategy, spec: JobSpec, home: Path, workers: Sequence[WorkerInfo]
) -> tuple[str, ...]:
    """Refuse a job that no worker or disk can hold; return notes on what could not be checked.

    Raises: `TooLarge`, saying what would fit.
    """
    notes: tuple[str, ...] = ()
    resources, needed = spec.resources, found.under(strategy)
    able = suitable(resources, workers)
    if resources.nodes > 1 and not able:
        notes = ("the job needs a fleet worker and none is running: it waits until one is",)
    elif not workers:
        notes = ("no worker is running: memory was not compared with a machine",)
    elif needed is not None and able and not any(fits(needed, resources, worker) for worker in able):
        largest = max(able, key=lambda worker: worker.memory_bytes)
        raise TooLarge(
            f"a trial needs {_on_worker(needed, resources, largest)} under {strategy}; the largest worker, "
            f"{largest.name}, has {gigabytes(largest.memory_bytes)}. {_advice(found, resources, able)}"
        )
    if found.disk_bytes is not None:
        free = shutil.disk_usage(home if home.exists() else home.absolute().anchor).free
        if found.disk_bytes > free:
            raise TooLarge(
                f"the job writes up to {gigabytes(found.disk_bytes)}, {gigabytes(free)} are free; free some disk, "
                "or lower retention.checkpoints, arms or seeds"
            )
    return notes


def check_devices(wanted: int, workers: Sequence[WorkerInfo]) -> None:
    """Refuse more devices than any host with a worker has. Raises: `TooLarge`."""
    hosts = [worker for worker in workers if worker.devices]
    if hosts and wanted > len((largest := max(hosts, key=lambda worker: len(worker.devices))).devices):
        raise TooLarge(
            f"resources.devices is {wanted}; the largest host, {largest.host}, has {len(largest.devices)}. Take at "
            "most so many, spread the trial over several hosts with resources.nodes, or start a worker on a larger host"
        )


def _advice(found: Estimate, resources: ResourcesSpec, able: Sequence[WorkerInfo]) -> str:
    fitting = [one.strategy for one in found.strategies if any(fits(one, resources, worker) for worker in able)]
    if fitting:
        return f"resources.strategy {' or '.join(fitting)} would fit"
    return "Take more devices, a smaller batch, more micro_batches, or a smaller target or source"


def _on_worker(needed: ProcessMemory, resources: ResourcesSpec, worker: WorkerInfo) -> str:
    if _on_cpu(resources, worker):
        each = gigabytes(needed.memory_bytes)
        return each if resources.devices == 1 else f"{resources.devices} × {each}"
    return f"{gigabytes(needed.device_bytes + CONTEXT_BYTES)} a device"


def _on_cpu(resources: ResourcesSpec, worker: WorkerInfo) -> bool:
    return resources.device == "cpu" or not worker.device.startswith("cuda")


def gigabytes(count: int) -> str:
    """A number of bytes as text."""
    return f"{count / 1e9:.1f} GB"
