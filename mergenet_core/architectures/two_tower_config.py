"""Configs of models with one encoder for text and one for images, where a size belongs to one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from pydantic import JsonValue

from mergenet_core.architectures.registry import find_two_tower_family
from mergenet_core.architectures.schema import TowerSpec
from mergenet_core.errors import ModelRefused
from mergenet_core.spec.json_values import JsonObject, get_object

Config: TypeAlias = dict[str, JsonValue]


def tower_configs(config: JsonObject) -> dict[str, Config]:
    """The config of each tower by its key, each with its model type; empty where the model is a whole."""
    return {tower.config_key: _tower_config(config, tower) for tower in _towers(config)}


def text_config(config: JsonObject) -> JsonObject:
    """Where a config has what concerns text: vocabulary, positions."""
    return tower_configs(config).get("text_config", config)


def image_config(config: JsonObject) -> JsonObject:
    """Where a config has what concerns images: their size, channels, patches."""
    return tower_configs(config).get("vision_config", config)


def check_tower_configs(config: JsonObject, where: str) -> None:
    """Refuse towers of unknown types, or that bring code. Raises: `ModelRefused`."""
    for tower in _towers(config):
        field, found = f"{where}.{tower.config_key}", config.get(tower.config_key)
        if found is not None and not isinstance(found, Mapping):
            raise ModelRefused(f"{field} is {found!r}; it is the config of a tower, with its sizes")
        kind = _tower_config(config, tower)["model_type"]
        if kind not in tower.model_types:
            raise ModelRefused(
                f"{field}: model_type {kind!r} is no tower of {config['model_type']} here; "
                f"{' or '.join(tower.model_types)} is"
            )
        if found is not None and "auto_map" in found:
            raise ModelRefused(f"{field} brings code of its own (auto_map); leave it out")


def with_defaults(config: JsonObject, text: JsonObject, images: JsonObject) -> Config:
    """The config with values that follow from the data, each in the tower that it belongs to, where it names none."""
    towers = tower_configs(config)
    if not towers:
        return {**text, **images, **config}
    implied = {"text_config": text, "vision_config": images}
    return {**config, **{key: {**implied[key], **tower} for key, tower in towers.items()}}


def _towers(config: JsonObject) -> tuple[TowerSpec, ...]:
    family = find_two_tower_family(str(config.get("model_type")))
    return () if family is None else family.towers


def _tower_config(config: JsonObject, tower: TowerSpec) -> Config:
    return {"model_type": tower.model_types[0], **get_object(config, tower.config_key)}
