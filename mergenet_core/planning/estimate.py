"""What a job needs of machines: memory of a process by strategy, disk and exchanges; and which strategy `auto` is.

Only shapes and the document are read, so that the API can answer before anything is downloaded.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from mergenet_core.errors import TooLarge
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.result import Pairing
from mergenet_core.planning.memory import CONTEXT_BYTES, LearnerSpec, ProcessMemory, Strategy, process_memory
from mergenet_core.planning.transfer_memory import TransferMemory, transfer_memory
from mergenet_core.records.record import Record
from mergenet_core.records.workers import WorkerInfo
from mergenet_core.spec.job import JobSpec, ResourcesSpec

_BYTES = 4
SPREAD: tuple[Strategy, ...] = ("ddp", "zero2", "fsdp2", "zero3")
"""The order in which `auto` tries them, fastest first: a step exchanges two, then three times the model."""


class Estimate(Record):
    """What the job needs of a machine, counted from shapes at the data's full length."""

    target_parameters: int | None
    source_parameters: int | None
    strategies: tuple[ProcessMemory, ...] = ()
    """A process of the most demanding trial under each strategy that the number of devices allows."""
    memory_bytes: int | None
    """Peak of a process under the job's strategy; of its GPU, where it would get one."""
    disk_bytes: int | None
    """Checkpoints, exports and the artifact, at their peak."""
    transfer_numbers: int = 0
    """Numbers that the processes of a trial exchange in one transfer, where a matrix is spread over them."""
    steps: int
    """Optimizer steps of all trials together."""

    def under(self, strategy: str) -> ProcessMemory | None:
        """What a process needs under a strategy."""
        return next((memory for memory in self.strategies if memory.strategy == strategy), None)


def estimate(
    spec: JobSpec, source: ModelInfo | None, target: ModelInfo | None, pairings: Sequence[Pairing], trained: int
) -> Estimate:
    """What a job needs whose target is trained `trained` times; null where a model's shapes are not known yet.

    `pairings` has one for each way in which its trials transfer; the one that needs most counts.
    """
    steps = spec.train.steps * trained + (spec.source.train.steps if spec.source.train else 0)
    counts = _count(source), _count(target)
    if source is None or target is None:
        return Estimate(
            target_parameters=counts[1], source_parameters=counts[0], memory_bytes=None, disk_bytes=None, steps=steps
        )
    transfers = [transfer_memory(pairing, spec.transfer) for pairing in pairings] or [TransferMemory()]
    beside, exchanged = max(one.device_bytes for one in transfers), max(one.exchanged for one in transfers)
    return Estimate(
        target_parameters=counts[1],
        source_parameters=counts[0],
        strategies=tuple(_trial_memory(name, spec, source, target, beside) for name in _possible(spec.resources)),
        memory_bytes=None,
        disk_bytes=_disk(spec, trained, *(count or 0 for count in counts)),
        transfer_numbers=exchanged,
        steps=steps,
    )


def _possible(resources: ResourcesSpec) -> tuple[Strategy, ...]:
    several = resources.devices * resources.nodes > 1
    return ("ddp", "fsdp2", "zero1", "zero2", "zero3") if several else ("single", "fsdp2", "zero1", "zero2", "zero3")


def _trial_memory(name: Strategy, spec: JobSpec, source: ModelInfo, target: ModelInfo, beside: int) -> ProcessMemory:
    """Memory of the job's most demanding trial under one strategy; `beside` are the bytes that a transfer adds."""
    data, own = spec.target.data, None
    if spec.source.train is not None:
        learner = LearnerSpec(source, spec.source_task, spec.source.data or data, spec.source.train)
        own = process_memory(name, learner, spec.resources)
    if spec.source.mode == "joint" and own is not None:
        beside += own.device_bytes
    arm = process_memory(name, LearnerSpec(target, spec.target.task, data, spec.train), spec.resources, beside)
    found = [arm] if own is None else [arm, own]
    teacher = spec.transfer.distill and spec.transfer.distill.teacher
    if teacher and any("distill" in arm for arm in spec.arms):
        learner = LearnerSpec(source, spec.target.task, data, teacher)
        found.append(process_memory(name, learner, spec.resources, _BYTES * (_count(target) or 0)))
    return max(found, key=lambda one: one.memory_bytes)


def _disk(spec: JobSpec, trained: int, source: int, target: int) -> int:
    states = 4 if spec.train.optimizer == "adamw" else 3  # weights, moments, and the best weights so far
    saved = _BYTES * states * target
    exports = _BYTES * target * (trained + 1)
    disk = saved * (spec.retention.checkpoints + 1) + exports
    if spec.source.train is not None:
        disk += _BYTES * source * (1 + len(spec.source.kept_steps) + 4 * (spec.retention.checkpoints + 1))
    return disk


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


def choose(found: Estimate, spec: JobSpec, workers: Sequence[WorkerInfo]) -> Strategy:
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


def settled(spec: JobSpec, strategy: str | None) -> JobSpec:
    """The document with `auto` replaced by what was chosen when the job was accepted."""
    if strategy is None or spec.resources.strategy != "auto":
        return spec
    resources = spec.resources.model_copy(update={"strategy": strategy})
    return spec.model_copy(update={"resources": resources})


def check_machine(
    found: Estimate, strategy: Strategy, spec: JobSpec, home: Path, workers: Sequence[WorkerInfo], notes: list[str]
) -> None:
    """Refuse a job that no worker or disk can hold. Raises: `TooLarge` with what would fit."""
    resources, needed = spec.resources, found.under(strategy)
    able = suitable(resources, workers)
    if resources.nodes > 1 and not able:
        notes.append("the job needs a fleet worker and none is up: it waits until one is")
    elif not workers:
        notes.append("no worker is up: memory was not compared with a machine")
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


def _count(model: ModelInfo | None) -> int | None:
    return None if model is None else sum(math.prod(shape) for shape in model.shapes.values())


def gigabytes(count: int) -> str:
    """Bytes for a reader."""
    return f"{count / 1e9:.1f} GB"
