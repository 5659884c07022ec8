"""Names and shapes of a ResNet or MobileNetV2 from scratch, for small images or as transformers has them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from mergenet_core.architectures.transformer_shapes import Shapes, labels, linear, norm

_CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
"""MobileNetV2's channels before and after each of its blocks (arXiv 1801.04381, table 2)."""


def cnn_shapes(config: Mapping[str, Any]) -> Shapes | None:
    """The shapes of a network of these two families; None for another."""
    kind = str(config.get("model_type"))
    if kind in ("resnet", "mergenet-resnet"):
        return _resnet(config, stem=3 if kind.startswith("mergenet-") else 7)
    if kind in ("mobilenet_v2", "mergenet-mobilenet-v2"):
        return _mobilenet(config)
    return None


def _resnet(config: Mapping[str, Any], stem: int) -> Shapes:
    at, channels = config.get("embedding_size", 64), config.get("num_channels", 3)
    shapes = _layer("resnet.embedder.embedder", at, channels, stem)
    sizes, depths = config.get("hidden_sizes", (256, 512, 1024, 2048)), config.get("depths", (3, 4, 6, 3))
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    for stage, (width, depth) in enumerate(zip(sizes, depths, strict=False)):
        halves = stage > 0 or config.get("downsample_in_first_stage", False)
        for block in range(depth):
            name = f"resnet.encoder.stages.{stage}.layers.{block}"
            if at != width or (halves and block == 0):
                shapes |= _layer(f"{name}.shortcut", width, at, 1)
            inner = width // 4 if bottleneck else width
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            widths = (at, *[inner] * (len(kernels) - 1), width)
            for number, ((inputs, outputs), kernel) in enumerate(zip(pairwise(widths), kernels, strict=True)):
                shapes |= _layer(f"{name}.layer.{number}", outputs, inputs, kernel)
            at = width
    return shapes | linear("classifier.1", labels(config), at)


def _mobilenet(config: Mapping[str, Any]) -> Shapes:
    multiplier, ratio = config.get("depth_multiplier", 1.0), config.get("expand_ratio", 6.0)

    def whole(channels: float) -> int:
        step, least = config.get("depth_divisible_by", 8), config.get("min_depth", 8)
        found = max(least, int(round(channels) + step / 2) // step * step)
        return int(found + step if found < 0.9 * round(channels) else found)

    channels = [whole(count * multiplier) for count in _CHANNELS]
    expanded = whole(32 * multiplier)
    name = "mobilenet_v2.conv_stem"
    shapes = _layer(f"{name}.first_conv", expanded, config.get("num_channels", 3), 3)
    if not config.get("first_layer_is_expansion", True):
        shapes |= _layer(f"{name}.expand_1x1", expanded, expanded, 1)
    shapes |= _layer(f"{name}.conv_3x3", expanded, 1, 3) | _layer(f"{name}.reduce_1x1", channels[0], expanded, 1)
    for block, (inputs, outputs) in enumerate(pairwise(channels)):
        name, inner = f"mobilenet_v2.layer.{block}", whole(inputs * ratio)
        shapes |= _layer(f"{name}.expand_1x1", inner, inputs, 1) | _layer(f"{name}.conv_3x3", inner, 1, 3)
        shapes |= _layer(f"{name}.reduce_1x1", outputs, inner, 1)
    kept = config.get("finegrained_output", True) and multiplier < 1
    last = 1280 if kept else whole(1280 * multiplier)
    return shapes | _layer("mobilenet_v2.conv_1x1", last, channels[-1], 1) | linear("classifier", labels(config), last)


def _layer(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    statistics = {f"{name}.normalization.running_{what}": (outputs,) for what in ("mean", "var")}
    counted: Shapes = {f"{name}.normalization.num_batches_tracked": ()}
    weight: Shapes = {f"{name}.convolution.weight": (outputs, inputs, kernel, kernel)}
    return weight | norm(f"{name}.normalization", outputs) | statistics | counted
