"""ResNet and MobileNetV2 for small images: their sizes, their weights' names and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, MobileNetV2Config, ResNetConfig, ResNetForImageClassification

from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.models.loading import build

LABELS = tuple(str(label) for label in range(100))
NARROW = {
    "mergenet-resnet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]},
    "mergenet-mobilenet-v2": {"depth_multiplier": 0.25, "finegrained_output": False},
}


def made(kind: str, **settings: object):
    return build({"model_type": kind, **settings}, "image-classification", LABELS, seed=0, overrides={})


@pytest.mark.parametrize(
    ("kind", "parameters", "width"),
    [("mergenet-resnet", 23_705_252, 2048), ("mergenet-mobilenet-v2", 2_351_972, 1280)],
)
def test_the_defaults_are_the_networks_of_the_papers_with_positions_left_at_32_pixels(
    kind: str, parameters: int, width: int
) -> None:
    model = made(kind)
    assert sum(value.numel() for value in model.parameters()) == parameters
    with torch.no_grad():
        maps = model.base_model(torch.randn(2, 3, 32, 32)).last_hidden_state
    assert maps.shape == (2, width, 4, 4)


@pytest.mark.parametrize("kind", NARROW)
def test_shapes_are_known_without_building_it(kind: str) -> None:
    for settings in ({}, NARROW[kind]):
        built = {name: tuple(value.shape) for name, value in made(kind, **settings).state_dict().items()}
        config = {"model_type": kind, "num_labels": 100, **settings}
        assert shapes_from_config(config, "image-classification") == built


@pytest.mark.parametrize("settings", [{}, {"layer_type": "basic", "hidden_sizes": [8, 8], "depths": [1, 2]}])
def test_shapes_of_transformers_own_resnet(settings: dict[str, object]) -> None:
    built = ResNetForImageClassification(ResNetConfig(num_labels=5, **settings)).state_dict()
    shapes = shapes_from_config({"model_type": "resnet", "num_labels": 5, **settings})
    assert shapes == {name: tuple(value.shape) for name, value in built.items()}


def test_shapes_of_transformers_own_mobilenet() -> None:
    for settings in ({"depth_multiplier": 0.35}, {"depth_multiplier": 1.4, "first_layer_is_expansion": False}):
        built = AutoModelForImageClassification.from_config(MobileNetV2Config(num_labels=5, **settings)).state_dict()
        shapes = shapes_from_config({"model_type": "mobilenet_v2", "num_labels": 5, **settings})
        assert shapes == {name: tuple(value.shape) for name, value in built.items()}


@pytest.mark.parametrize("kind", NARROW)
def test_the_statistics_are_those_of_many_batches(kind: str) -> None:
    model = made(kind, **NARROW[kind]).train()
    norm = model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("normalization")))
    seen = []
    norm.register_forward_hook(lambda _, maps, __: seen.append(maps[0].detach().mean(dim=(0, 2, 3))))
    for shift in (0.0, 5.0):
        model(torch.randn(4, 3, 32, 32) + shift)
    torch.testing.assert_close(norm.running_mean, 0.09 * seen[0] + 0.1 * seen[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", NARROW)
def test_a_saved_one_comes_back_with_its_strides(kind: str, tmp_path: Path) -> None:
    model = made(kind, **NARROW[kind]).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(images).logits, model(images).logits)
