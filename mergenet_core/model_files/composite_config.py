"""Configs of models with a tower for text and one for images, where a size belongs to one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergenet_core.errors import ModelRefused

Config = Mapping[str, Any]
TOWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "clip": {"text_config": ("clip_text_model",), "vision_config": ("clip_vision_model",)},
    "vision-text-dual-encoder": {"text_config": ("bert", "roberta"), "vision_config": ("vit",)},
}
"""Models of two towers: where each one's config is, and of which types it may be, the default first."""


def tower_configs(config: Config) -> dict[str, dict[str, Any]]:
    """The configs of a model's towers by their keys, each with its type; none where the model is a whole."""
    return {
        key: {"model_type": allowed[0], **(config.get(key) or {})}
        for key, allowed in TOWERS.get(str(config.get("model_type")), {}).items()
    }


def text_part(config: Config) -> Config:
    """Where a config tells of its text: vocabulary, positions."""
    return tower_configs(config).get("text_config", config)


def image_part(config: Config) -> Config:
    """Where a config tells of its images: their size, channels, patches."""
    return tower_configs(config).get("vision_config", config)


def check_towers(config: Config, where: str) -> None:
    """Refuse towers that are not known, or bring code. Raises: `ModelRefused`."""
    for key, allowed in TOWERS.get(str(config.get("model_type")), {}).items():
        tower = config.get(key)
        if tower is not None and not isinstance(tower, Mapping):
            raise ModelRefused(f"{where}.{key} is {tower!r}; it is the config of a tower, with its sizes")
        kind = (tower or {}).get("model_type", allowed[0])
        if kind not in allowed:
            raise ModelRefused(
                f"{where}.{key}: model_type {kind!r} is no tower of {config['model_type']} here; "
                f"{' or '.join(allowed)} is"
            )
        if "auto_map" in (tower or {}):
            raise ModelRefused(f"{where}.{key} brings code of its own (auto_map); leave it out")


def with_defaults(config: Config, text: Config, images: Config) -> dict[str, Any]:
    """The config with values that follow from the data, each in the tower that it belongs to, where it names none."""
    towers = tower_configs(config)
    if not towers:
        return {**text, **images, **config}
    implied = {"text_config": text, "vision_config": images}
    return {**config, **{key: {**implied[key], **tower} for key, tower in towers.items()}}
