"""Checks of a job document that need more than the document: its models' configs, packs and heads."""

from __future__ import annotations

from collections.abc import Collection

from mergenet_core.architectures.two_tower_config import tower_configs
from mergenet_core.errors import FieldError, SpecInvalid
from mergenet_core.model_files.knowledge_pack import Pack
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.records.job import Candidate
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.json_values import JsonObject, get_object
from mergenet_core.spec.task_info import TASKS

_LAYERS_MAX, _SIZE_MAX = 1_000, 10_000_000
_ENTRIES_MAX = 100_000


def check_trajectory(spec: JobSpec, pack: Pack) -> None:
    """Refuse a trajectory from a pack that holds one checkpoint. Raises: `SpecInvalid`."""
    if spec.source.mode == "trajectory" and pack.checkpoints < 2:
        raise SpecInvalid(
            "source.model.pack holds one checkpoint, which is no trajectory: give mergenet pack several folders, "
            "the oldest first, or take source.mode frozen"
        )


def check_copy(spec: JobSpec, found: Collection[Candidate]) -> None:
    """Refuse the arm `copy` where only a fit is possible, which pairs no weights. Raises: `SpecInvalid`."""
    if "copy" in spec.arms and all(candidate.method == "fit" for candidate in found):
        raise SpecInvalid(
            "arms: copy takes over paired weights, and these models share no axis by which any pair; leave copy out",
            errors=(FieldError("/arms", "no weights pair for the arm copy; leave it out"),),
        )


def check_sizes(config: JsonObject, field: str) -> None:
    """Refuse sizes so large that the server would be busy for long. Raises: `SpecInvalid`."""
    for key in tower_configs(config):
        check_sizes(get_object(config, key), f"{field}.{key}")
    for name, value in config.items():
        limit = _LAYERS_MAX if "layer" in name else _SIZE_MAX
        if isinstance(value, int) and value > limit:
            raise SpecInvalid(f"{field}.{name}: {value} is more than {limit}, the largest allowed; take a smaller one")
        if isinstance(value, (list, dict)) and len(value) > _ENTRIES_MAX:
            raise SpecInvalid(f"{field}.{name} has {len(value)} entries; {_ENTRIES_MAX} is the most")


def check_distillation(spec: JobSpec, source: ModelInfo | None) -> None:
    """Refuse distillation for a task that has none, or from a source that has no head for it. Raises: `SpecInvalid`."""
    distilling = spec.distilling_arms
    if distilling and not TASKS[spec.target.task].one_label:
        able = ", ".join(name for name, task in TASKS.items() if task.one_label)
        raise SpecInvalid(
            f"arms: {distilling[0]} needs a task with one label per example ({able}), the target "
            f"learns {spec.target.task}; leave {' and '.join(distilling)} out",
            errors=(FieldError("/arms", f"{distilling[0]} does not go with {spec.target.task}; leave it out"),),
        )
    if not distilling or source is None:
        return
    teacher = spec.transfer.distill and spec.transfer.distill.teacher
    headless = source.labels is None if spec.source.train is None else spec.source_task != spec.target.task
    if teacher is None and headless:
        raise SpecInvalid(
            "transfer.distill.teacher is missing: the source has no head for the target's labels, so it cannot teach "
            "them; give teacher (steps, learning_rate, …) to fine-tune a copy first, or leave the distill arms out"
        )
