"""Checks of a job document that need more than the document: its models' configs, packs and heads."""

from __future__ import annotations

from collections.abc import Collection

from mergenet_core.architectures.check_config import check_config
from mergenet_core.architectures.shapes import head_names
from mergenet_core.architectures.two_tower_config import tower_configs
from mergenet_core.errors import FieldError, SpecInvalid
from mergenet_core.model_files.knowledge_pack import Pack
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.records.job import Candidate
from mergenet_core.spec.job import DistillSpec, JobSpec
from mergenet_core.spec.json_values import JsonObject, get_object
from mergenet_core.spec.task_info import TASKS, TaskInfo

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


def check_distillation(spec: JobSpec, source: ModelInfo | None, target: ModelInfo | None) -> None:
    """Refuse distillation from a source that cannot teach the target's task.

    What is not known before a worker has opened the models is checked there, before the first step.
    Raises: `SpecInvalid`, `ModelRefused`.
    """
    distilling, task = " and ".join(spec.distilling_arms), TASKS[spec.target.task]
    if not distilling:
        return
    distill = spec.transfer.distill or DistillSpec()
    if distill.loss == "dkd" and task.several_right:
        raise SpecInvalid(
            f"transfer.distill.loss dkd sets one right label apart, and in {task.name} several can be right; take kd"
        )
    if source is None:
        return
    check_config(source.config, task.name, where="source.model")
    if distill.teacher is None and _has_no_head(spec, source):
        raise SpecInvalid(
            f"transfer.distill.teacher is missing: the source has no head for {_what_is_taught(task)}, so it cannot "
            "teach as it is; give teacher (steps, learning_rate, …) to fine-tune a copy first, or leave the distill "
            "arms out"
        )
    vocabularies = {model.vocabulary for model in (source, target) if model is not None and model.vocabulary}
    if task.by_token and len(vocabularies) > 1:
        raise SpecInvalid(
            f"arms: {distilling}: the outputs of {task.name} belong to tokens, and source and target have different "
            "tokenizers; give both the same one (target.model.tokenizer, source.model.tokenizer), or leave "
            f"{distilling} out",
            errors=(FieldError("/arms", f"source and target have different tokenizers; leave {distilling} out"),),
        )


def _has_no_head(spec: JobSpec, source: ModelInfo) -> bool:
    if spec.source.train is not None:
        return spec.source_task != spec.target.task
    if TASKS[spec.target.task].fixed_labels is None and source.labels is None:
        return True
    return not head_names(source.config, spec.target.task) <= source.shapes.keys()


def _what_is_taught(task: TaskInfo) -> str:
    return "the target's labels" if task.fixed_labels is None else f"{task.name}"
