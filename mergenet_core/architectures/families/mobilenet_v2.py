"""MobileNetV2, as transformers has it and, as `mergenet-mobilenet-v2`, for small images.

Blocks whose output is added to their input share one axis, `stage.{s}`; `inner` lies within a block. A depthwise
convolution keeps its channels apart, so that its output axis is its input axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from mergenet_core.architectures.axes import Shapes
from mergenet_core.architectures.declare import classifier, convolution
from mergenet_core.architectures.schema import Blocks, Dimensions, Family, WeightSpec, label_count
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int

_CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
"""Channels before and after each block (arXiv 1801.04381, table 2)."""
_HALVING = (0, 2, 5, 12)
"""Blocks that halve an image: nothing is added to their output, however wide it is."""


def _channels(config: JsonObject, count: float) -> int:
    """A number of channels, rounded as the reference code does."""
    step, least = get_int(config, "depth_divisible_by", default=8), get_int(config, "min_depth", default=8)
    found = max(least, int(round(count) + step / 2) // step * step)
    return int(found + step if found < 0.9 * round(count) else found)


def _widths(config: JsonObject) -> list[tuple[int, int]]:
    """The channels before and after each block."""
    multiplier = get_float(config, "depth_multiplier", default=1.0)
    return list(pairwise(_channels(config, count * multiplier) for count in _CHANNELS))


def _of_shapes(shapes: Shapes) -> Iterator[tuple[int, tuple[int, int]]]:
    found = (re.match(r"layer\.(\d+)\.", name) for name in shapes)
    for block in sorted({int(match[1]) for match in found if match}):
        ends = (shapes.get(f"layer.{block}.{name}.convolution.weight", (0, 0)) for name in ("expand_1x1", "reduce_1x1"))
        expand, reduce = ends
        yield block, (expand[1], reduce[0])


def _walk(blocks: Iterable[tuple[int, tuple[int, int]]], *, expands: bool) -> Iterator[WeightSpec]:
    """Every convolution in the order that data passes through them; a block is its number and its widths."""
    yield from convolution("conv_stem.first_conv", "stem.", None, "stem", "channels-in", 3)
    inner = "stem"
    if expands:
        inner = "stem.inner"
        yield from convolution("conv_stem.expand_1x1", "stem.in.", None, inner, "stem", 1)
    yield from convolution("conv_stem.conv_3x3", "stem.depthwise.", None, inner, None, 3)
    yield from convolution("conv_stem.reduce_1x1", "stem.out.", None, "stage.0", inner, 1)
    out, stage = "stage.0", 0
    for layer, (inputs, outputs) in blocks:
        name, before, inner = f"layer.{layer}", out, f"inner.{layer}"
        if outputs != inputs or layer in _HALVING:
            stage += 1
            out = f"stage.{stage}"
        yield from convolution(f"{name}.expand_1x1", "block.in.", layer, inner, before, 1, stage=stage)
        yield from convolution(f"{name}.conv_3x3", "block.depthwise.", layer, inner, None, 3, stage=stage)
        yield from convolution(f"{name}.reduce_1x1", "block.out.", layer, out, inner, 1, stage=stage)
    yield from convolution("conv_1x1", "last.", None, "last", out, 1)


def _dimensions(config: JsonObject) -> Dimensions:
    multiplier = get_float(config, "depth_multiplier", default=1.0)
    ratio, widths = get_float(config, "expand_ratio", default=6.0), _widths(config)
    stem = _channels(config, 32 * multiplier)
    # with the option, a thin network keeps the last convolution's full width
    whole = get_bool(config, "finegrained_output", default=True) and multiplier < 1
    axes = {"channels-in": get_int(config, "num_channels", default=3), "labels": label_count(config)}
    axes |= {"stem": stem, "stem.inner": stem, "stage.0": widths[0][0]}
    axes |= {"last": 1280 if whole else _channels(config, 1280 * multiplier)}
    axes |= {f"inner.{block}": _channels(config, inputs * ratio) for block, (inputs, _) in enumerate(widths)}
    for spec in _walk(enumerate(widths), expands=True):
        if spec.role == "block.out.conv" and spec.layer is not None:
            axes[spec.out] = widths[spec.layer][1]
    return Dimensions(layers=len(widths), axes=axes)


class _MobileNetV2:
    """Stem, inverted residuals, a last pointwise convolution; where width and resolution stay, the axis does."""

    def of_config(self, config: JsonObject, dimensions: Dimensions) -> Sequence[WeightSpec]:
        """See `Body`."""
        expands = not get_bool(config, "first_layer_is_expansion", default=True)
        return list(_walk(enumerate(_widths(config)), expands=expands))

    def of_shapes(self, shapes: Shapes) -> Sequence[WeightSpec]:
        """See `Body`."""
        return list(_walk(_of_shapes(shapes), expands="conv_stem.expand_1x1.convolution.weight" in shapes))


MOBILENET_V2 = Family(
    name="mobilenet_v2",
    kind="cnn",
    model_types=("mobilenet_v2", "mergenet-mobilenet-v2"),
    dimensions=_dimensions,
    body=_MobileNetV2(),
    entrance="conv_stem.first_conv.convolution.weight",
    blocks=Blocks(modules=r"conv_stem|layer\.\d+|conv_1x1", linear=r"conv_stem|layer\.\d+"),
    prefix="mobilenet_v2.",
    heads={"image-classification": classifier("classifier")},
)
