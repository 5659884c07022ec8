"""The plain networks compute what they say, under names that pairing reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d
from transformers import AutoModelForImageClassification

from mergenet_core.errors import ModelRefused
from mergenet_core.models.loading import build

LABELS = ("a", "b", "c")


def test_the_mlp_is_relu_of_linear_layers_on_flattened_pixels() -> None:
    config = {"model_type": "mergenet-mlp", "image_size": 4, "num_channels": 2, "hidden_sizes": [7, 5]}
    model = build(config, "image-classification", LABELS, seed=0, overrides={})
    weights = model.state_dict()
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "layers.0.weight": (7, 32), "layers.0.bias": (7,), "layers.1.weight": (5, 7), "layers.1.bias": (5,),
        "head.weight": (3, 5), "head.bias": (3,),
    }  # fmt: skip
    images = torch.randn(6, 2, 4, 4)
    units = images.reshape(6, -1)
    for layer in ("layers.0", "layers.1"):
        units = (units @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]).clamp(min=0)
    expected = units @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(pixel_values=images).logits, expected)


def test_the_cnn_is_convolution_norm_relu_then_the_mean_over_positions() -> None:
    config = {"model_type": "mergenet-cnn", "channels": [4, 6], "kernel_size": 3, "strides": [1, 2]}
    model = build(config, "image-classification", LABELS, seed=0, overrides={"num_channels": 3}).eval()
    weights = model.state_dict()
    assert weights["blocks.0.conv.weight"].shape == (4, 3, 3, 3)
    assert "blocks.0.conv.bias" not in weights
    images = torch.randn(2, 3, 9, 9)
    maps = images
    for row, stride in enumerate((1, 2)):
        block = f"blocks.{row}"
        maps = conv2d(maps, weights[f"{block}.conv.weight"], stride=stride, padding=1)
        norm = [weights[f"{block}.norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        maps = batch_norm(maps, *norm).clamp(min=0)
    expected = maps.mean(dim=(2, 3)) @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(pixel_values=images).logits, expected)


@pytest.mark.parametrize("kind", ["mergenet-mlp", "mergenet-cnn"])
def test_saved_and_loaded_they_are_the_same(kind: str, tmp_path: Path) -> None:
    model = build({"model_type": kind}, "image-classification", LABELS, seed=3, overrides={})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "mergenet-mlp", "hidden_sizes": []}, "hidden_sizes must be a list of positive"),
        ({"model_type": "mergenet-cnn", "channels": [8, 0]}, "channels must be a list of positive"),
        ({"model_type": "mergenet-cnn", "channels": [8, 8], "strides": [1]}, "1 strides for 2 channels"),
    ],
)
def test_sizes_that_make_no_network_are_refused(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        build(config, "image-classification", LABELS, seed=0, overrides={})
