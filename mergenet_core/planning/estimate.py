"""What a job needs of machines: memory of a process under each strategy, disk, and numbers exchanged.

Only shapes and the document are read, so that the API can answer before anything is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.result import Pairing
from mergenet_core.planning.memory import LearnerSpec, process_memory, taught
from mergenet_core.planning.plan import Estimate, ProcessMemory, Strategy
from mergenet_core.planning.transfer_memory import TransferMemory, transfer_memory
from mergenet_core.spec.job import DistillSpec, JobSpec, ResourcesSpec, TrainSpec

_BYTES = 4


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
    added_bytes, exchanged = max(one.device_bytes for one in transfers), max(one.exchanged for one in transfers)
    return Estimate(
        target_parameters=counts[1],
        source_parameters=counts[0],
        strategies=tuple(_trial_memory(name, spec, source, target, added_bytes) for name in _possible(spec.resources)),
        memory_bytes=None,
        disk_bytes=_disk(spec, trained, *(count or 0 for count in counts)),
        transfer_numbers=exchanged,
        steps=steps,
    )


def _possible(resources: ResourcesSpec) -> tuple[Strategy, ...]:
    several = resources.devices * resources.nodes > 1
    return ("ddp", "fsdp2", "zero1", "zero2", "zero3") if several else ("single", "fsdp2", "zero1", "zero2", "zero3")


def _trial_memory(
    name: Strategy, spec: JobSpec, source: ModelInfo, target: ModelInfo, added_bytes: int
) -> ProcessMemory:
    """Memory of the job's most demanding trial under one strategy; a transfer adds `added_bytes`."""
    data, own = spec.target.data, None
    if spec.source.train is not None:
        learner = LearnerSpec(source, spec.source_task, spec.source.data or data, spec.source.train)
        own = process_memory(name, learner, spec.resources)
    if spec.source.mode == "joint" and own is not None:
        added_bytes += own.device_bytes
    if "sham-untrained" in spec.arms:  # it is built as a whole, where a source is read one weight at a time
        added_bytes += _BYTES * (_count(source) or 0)
    if spec.distilling_arms or spec.may_fit:  # the source reads a batch of every step
        added_bytes += _BYTES * (_count(source) or 0)
    if spec.distilling_arms:
        read = LearnerSpec(source, spec.target.task, data, _taught_batch(spec))
        added_bytes += taught(read, spec.resources)
    learner = LearnerSpec(target, spec.target.task, data, _largest_batch(spec))
    arm = process_memory(name, learner, spec.resources, added_bytes)
    found = [arm] if own is None else [arm, own]
    teacher = spec.transfer.distill and spec.transfer.distill.teacher
    if teacher and spec.distilling_arms:
        learner = LearnerSpec(source, spec.target.task, data, teacher)
        found.append(process_memory(name, learner, spec.resources, _BYTES * (_count(target) or 0)))
    return max(found, key=lambda one: one.memory_bytes)


def _largest_batch(spec: JobSpec) -> TrainSpec:
    """The target's training with all inputs of a step in its batch: an arm may read unlabelled ones, or copies, too.

    The activations of both are kept until the backward pass; a distillation without a labelled loss reads no others.
    """
    distill = spec.transfer.distill or DistillSpec()
    if not (spec.target.data.has_unlabelled or distill.copies or spec.may_fit):
        return spec.train
    labelled = spec.train.batch_size if distill.task_share or spec.may_fit else 0
    unlabelled = spec.pool_batch_size if spec.may_fit else 0
    if spec.distilling_arms:
        unlabelled = max(unlabelled, _taught_batch(spec).batch_size)
    batch_size = max(spec.train.batch_size, unlabelled + labelled)
    return spec.train.model_copy(update={"batch_size": batch_size})


def _taught_batch(spec: JobSpec) -> TrainSpec:
    """The target's training with the inputs of a step that the teacher reads in its batch."""
    copies = spec.transfer.distill is not None and spec.transfer.distill.copies
    batch_size = spec.pool_batch_size if spec.target.data.has_unlabelled else spec.train.batch_size * (1 + copies)
    return spec.train.model_copy(update={"batch_size": batch_size})


def _disk(spec: JobSpec, trained: int, source: int, target: int) -> int:
    states = 4 if spec.train.optimizer == "adamw" else 3  # weights, moments, and the best weights so far
    saved = _BYTES * states * target
    exports = _BYTES * target * (trained + 1)
    disk = saved * (spec.retention.checkpoints + 1) + exports
    if spec.source.train is not None:
        disk += _BYTES * source * (1 + len(spec.source.kept_steps) + 4 * (spec.retention.checkpoints + 1))
    return disk


def _count(model: ModelInfo | None) -> int | None:
    return None if model is None else sum(math.prod(shape) for shape in model.shapes.values())
