"""Whether the model that a config describes can be built here and can learn a task."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from mergenet_core.architectures.registry import FAMILIES, TWO_TOWER_FAMILIES, find_family
from mergenet_core.architectures.two_tower_config import check_tower_configs, tower_configs
from mergenet_core.errors import ModelRefused
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS, TaskName


def check_config(config: JsonObject, task: TaskName | None, *, where: str) -> None:
    """Refuse code of the model's own and model types that cannot learn the task. Raises: `ModelRefused`."""
    if "auto_map" in config:
        raise ModelRefused(f"{where} brings code of its own (auto_map); only architectures of transformers are loaded")
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise ModelRefused(f"{where}: model_type {kind!r} is not text; correct the config")
    if task is not None and kind not in model_types()[task]:
        known = ", ".join([*sorted(model_types()[task])[:6], "…"])
        raise ModelRefused(f"{where}: model_type {kind!r} cannot learn {task}; known are {known} (GET /schema/job)")
    check_tower_configs(config, where)
    both_directions = kind in model_types()["masked-language-modelling"] and not config.get("is_decoder")
    if task == "causal-language-modelling" and both_directions:
        raise ModelRefused(
            f"{where}: a {kind} reads the tokens that it is to predict; set is_decoder: true in its config, or take a "
            "decoder such as gpt2 or llama, or masked-language-modelling"
        )


def check_sizes_are_numbers(config: JsonObject, *, where: str) -> None:
    """Refuse the config of a declared family whose sizes cannot be read. Raises: `ModelRefused`."""
    for own in tower_configs(config).values() or (config,):
        family = find_family(str(own.get("model_type")))
        try:
            if family is not None:
                family.dimensions_of(own)
        except ValueError as error:
            raise ModelRefused(f"{where}: {error}; correct config.json") from None


@cache
def model_types() -> dict[TaskName, frozenset[str]]:
    """The model types that can learn each task: those of transformers' auto classes, and the families declared here."""
    text = (Path(__file__).parent / "transformers_model_types.json").read_text(encoding="utf-8")
    listed: dict[str, list[str]] = json.loads(text)
    heads = {task: info.head_task for task, info in TASKS.items()}
    return {task: frozenset(listed.get(head, ())) | _declared(head) for task, head in heads.items()}


def _declared(task: TaskName) -> frozenset[str]:
    towers = (family.model_type for family in TWO_TOWER_FAMILIES if task in family.tasks)
    return frozenset(towers) | {kind for family in FAMILIES if task in family.heads for kind in family.model_types}
