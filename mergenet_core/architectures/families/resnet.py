"""ResNet, as transformers has it and, as `mergenet-resnet`, with a stem for small images.

The names of axes follow the skip connections: blocks whose output is added to their input share one axis, `stage.{s}`;
within a block, `inner` and `middle` lie between its convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mergenet_core.architectures.axes import Shapes
from mergenet_core.architectures.declare import classifier, convolution
from mergenet_core.architectures.schema import Blocks, Dimensions, Family, WeightSpec, label_count
from mergenet_core.spec.json_values import JsonObject, get_bool, get_int, get_ints, get_str


class _Block(NamedTuple):
    """A basic block of two convolutions, or a bottleneck of three."""

    stage: int
    number: int
    bottleneck: bool
    shortcut: bool
    """A convolution leads around the block, where its width or resolution changes."""

    @property
    def name(self) -> str:
        return f"encoder.stages.{self.stage}.layers.{self.number}"


def _sizes(config: JsonObject) -> tuple[int, ...]:
    return get_ints(config, "hidden_sizes", default=(256, 512, 1024, 2048))


def _of_config(config: JsonObject) -> Iterator[_Block]:
    before = get_int(config, "embedding_size", default=64)
    depths = get_ints(config, "depths", default=(3, 4, 6, 3))
    bottleneck = get_str(config, "layer_type", default="bottleneck") == "bottleneck"
    for stage, (width, depth) in enumerate(zip(_sizes(config), depths, strict=False)):
        halves = stage > 0 or get_bool(config, "downsample_in_first_stage", default=False)
        for number in range(depth):
            yield _Block(stage, number, bottleneck, shortcut=before != width or (halves and number == 0))
            before = width


def _of_shapes(shapes: Shapes) -> Iterator[_Block]:
    found = (re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.", name) for name in shapes)
    for stage, number in sorted({(int(match[1]), int(match[2])) for match in found if match}):
        name = _Block(stage, number, bottleneck=False, shortcut=False).name
        bottleneck, shortcut = (f"{name}.{part}.convolution.weight" in shapes for part in ("layer.2", "shortcut"))
        yield _Block(stage, number, bottleneck, shortcut)


def _walk(blocks: Iterable[_Block], stem: int) -> Iterator[WeightSpec]:
    """Every convolution in the order that data passes through them, with the norm behind it."""
    yield from convolution("embedder.embedder", "stem.", None, "stem", "channels-in", stem)
    out = "stem"
    for layer, block in enumerate(blocks):
        before, name, stage = out, block.name, block.stage
        if block.shortcut:
            out = f"stage.{stage}"
            yield from convolution(f"{name}.shortcut", "shortcut.", layer, out, before, 1, stage=stage)
        inner, middle, last = f"inner.{layer}", f"middle.{layer}", f"{name}.layer.1"
        first = 1 if block.bottleneck else 3
        yield from convolution(f"{name}.layer.0", "block.in.", layer, inner, before, first, stage=stage)
        if block.bottleneck:
            yield from convolution(f"{name}.layer.1", "block.middle.", layer, middle, inner, 3, stage=stage)
            inner, last = middle, f"{name}.layer.2"
        yield from convolution(last, "block.out.", layer, out, inner, first, stage=stage)


def _dimensions(config: JsonObject) -> Dimensions:
    axes = {"channels-in": get_int(config, "num_channels", default=3), "labels": label_count(config)}
    axes |= {"stem": get_int(config, "embedding_size", default=64)}
    blocks, sizes = list(_of_config(config)), _sizes(config)
    for layer, block in enumerate(blocks):
        width = sizes[block.stage]
        inner = width // 4 if block.bottleneck else width
        axes |= {f"stage.{block.stage}": width, f"inner.{layer}": inner, f"middle.{layer}": inner}
    return Dimensions(layers=len(blocks), axes=axes)


class _ResNet:
    """Stem, then stages of basic or bottleneck blocks with a shortcut where the width changes."""

    def of_config(self, config: JsonObject, dimensions: Dimensions) -> Sequence[WeightSpec]:
        """See `Body`."""
        small = get_str(config, "model_type").startswith("mergenet-")
        return list(_walk(_of_config(config), stem=3 if small else 7))

    def of_shapes(self, shapes: Shapes) -> Sequence[WeightSpec]:
        """See `Body`."""
        return list(_walk(_of_shapes(shapes), stem=7))


RESNET = Family(
    name="resnet",
    kind="cnn",
    model_types=("resnet", "mergenet-resnet"),
    dimensions=_dimensions,
    body=_ResNet(),
    entrance="embedder.embedder.convolution.weight",
    blocks=Blocks(modules=r"embedder|encoder\.stages\.\d+\.layers\.\d+"),
    prefix="resnet.",
    heads={"image-classification": classifier("classifier.1")},
)
