"""Names and shapes of a model from its config alone, so that a job can be paired without torch."""

from __future__ import annotations

from mergenet_core.architectures.registry import find_family, find_two_tower_family
from mergenet_core.architectures.schema import Family, TowerSpec, TwoTowerFamily, only
from mergenet_core.architectures.two_tower_config import tower_configs
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS, TaskName


def shapes_from_config(config: JsonObject, task: TaskName | None = None) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the model that a config describes, with the task's head.

    None for a family that is not known here, or that has no head for the task. Without a task the head is the family's
    first. A weight that is tied to another is listed once. Raises: `ValueError` naming an entry of a wrong type.
    """
    kind = str(config.get("model_type"))
    task = task and TASKS[task].head_task
    if (two := find_two_tower_family(kind)) is not None:
        return _two_tower_shapes(two, config) if task is None or task in two.tasks else None
    family = find_family(kind)
    if family is None or not family.heads:
        return None
    head = next(iter(family.heads.values())) if task is None else family.heads.get(task)
    if head is None:
        return None
    dimensions = family.dimensions_of(config)
    body = family.body.of_config(config, dimensions)
    present = dimensions.options | head.options
    prefix = family.prefix if head.prefix is None else head.prefix
    last = next((spec.out for spec in reversed(body) if spec.role is not None), "")
    shapes = {f"{prefix}{spec.name}": spec.stored_shape(dimensions) for spec in only(body, present)}
    heads = (spec.reading(last) for spec in only(head.weights, present))
    return shapes | {spec.name: spec.stored_shape(dimensions) for spec in heads}


def head_names(config: JsonObject, task: TaskName) -> frozenset[str]:
    """Names of the weights of the head for the task; none for a family that is not known here, or has no such head."""
    names = shapes_from_config(config, task) or {}
    family = find_family(str(config.get("model_type")))
    if family is None:  # the towers of two encoders have no weights under other names
        return frozenset(names)
    head = family.heads[TASKS[task].head_task] if names else None
    prefixes = tuple(prefix for prefix in {family.prefix, head and head.prefix} if prefix)
    return frozenset(name for name in names if not name.startswith(prefixes))


def _two_tower_shapes(family: TwoTowerFamily, config: JsonObject) -> dict[str, tuple[int, ...]] | None:
    shapes: dict[str, tuple[int, ...]] = {}
    for tower, own in zip(family.towers, tower_configs(config).values(), strict=True):
        found = _family_of(tower, str(own["model_type"]))
        if found is None:
            return None
        dimensions = found.dimensions_of(own).with_axis("joint", family.joint(config))
        present = dimensions.options | tower.options
        for spec in only(found.body.of_config(own, dimensions), present):
            shapes[f"{tower.prefix}{spec.name}"] = spec.stored_shape(dimensions)
        shapes |= {spec.name: spec.stored_shape(dimensions) for spec in tower.projection}
    return shapes | {spec.name: () for spec in family.extra}


def _family_of(tower: TowerSpec, model_type: str) -> Family | None:
    return next((family for family in tower.families if model_type in family.model_types), None)
