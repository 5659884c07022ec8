"""The parts of convolutional networks: transformers' ResNet and MobileNetV2, and the plain CNN here.

The names of axes follow the skip connections: blocks whose output is added to their input share one axis, `stage.{s}`;
within a block, `inner` and `middle` lie between its convolutions. A depthwise convolution keeps its channels apart, so
that what comes out of it is the axis that went in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergenet_core.architectures.structure import Form, LogicalWeight, ModelStructure

_Shapes = Mapping[str, tuple[int, ...]]
_STATISTICS = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}

_HALVING = (0, 2, 5, 12)
"""MobileNetV2's blocks that halve an image: nothing is added to what comes out of them, however wide it is."""


def read_cnn(shapes: _Shapes) -> ModelStructure | None:
    """The structure of a CNN whose names are known here."""
    for name in shapes:
        if found := re.fullmatch(r"((?:\w+\.)*?)embedder\.embedder\.convolution\.weight", name):
            return _Reader(shapes, found[1]).resnet()
        if found := re.fullmatch(r"((?:\w+\.)*?)conv_stem\.first_conv\.convolution\.weight", name):
            return _Reader(shapes, found[1]).mobilenet_v2()
        if found := re.fullmatch(r"((?:\w+\.)*?)blocks\.0\.conv\.weight", name):
            return _Reader(shapes, found[1]).plain()
    return None


class _Reader:
    """Walks through a network the way data does, and names the axes on the way."""

    def __init__(self, shapes: _Shapes, prefix: str) -> None:
        self._shapes, self._prefix = shapes, prefix
        self._parts: list[LogicalWeight] = []
        self._stages: list[int] = []

    def resnet(self) -> ModelStructure:
        """Stem, then stages of basic or bottleneck blocks with a shortcut where the width changes."""
        at = self._convolution("embedder.embedder", "stem.", None, "stem", "channels-in")
        blocks = _numbers(self._shapes, re.escape(self._prefix) + r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\..*")
        for layer, (stage, block) in enumerate(blocks):
            name, stem = f"encoder.stages.{stage}.layers.{block}", at
            if f"{self._prefix}{name}.shortcut.convolution.weight" in self._shapes:
                at = self._convolution(f"{name}.shortcut", "shortcut.", layer, f"stage.{stage}", stem)
            if f"{self._prefix}{name}.layer.2.convolution.weight" in self._shapes:
                inner = self._convolution(f"{name}.layer.0", "block.in.", layer, f"inner.{layer}", stem)
                middle = self._convolution(f"{name}.layer.1", "block.middle.", layer, f"middle.{layer}", inner)
                self._convolution(f"{name}.layer.2", "block.out.", layer, at, middle)
            else:
                inner = self._convolution(f"{name}.layer.0", "block.in.", layer, f"inner.{layer}", stem)
                self._convolution(f"{name}.layer.1", "block.out.", layer, at, inner)
            self._stages.append(stage)
        return self._finished("resnet", at)

    def mobilenet_v2(self) -> ModelStructure:
        """Stem, inverted residuals, a last pointwise convolution; where width and resolution stay, the axis does."""
        at = self._convolution("conv_stem.first_conv", "stem.", None, "stem", "channels-in")
        at = self._convolution("conv_stem.expand_1x1", "stem.in.", None, "stem.inner", at)
        self._convolution("conv_stem.conv_3x3", "stem.depthwise.", None, at, None)
        at = self._convolution("conv_stem.reduce_1x1", "stem.out.", None, "stage.0", at)
        stage = 0
        for (layer,) in _numbers(self._shapes, re.escape(self._prefix) + r"layer\.(\d+)\..*"):
            name, before = f"layer.{layer}", at
            inner = self._convolution(f"{name}.expand_1x1", "block.in.", layer, f"inner.{layer}", before)
            self._convolution(f"{name}.conv_3x3", "block.depthwise.", layer, inner, None)
            out, inp = self._shape(f"{name}.reduce_1x1")[0], self._shape(f"{name}.expand_1x1")[1]
            if out != inp or layer in _HALVING:
                stage += 1
                at = f"stage.{stage}"
            self._convolution(f"{name}.reduce_1x1", "block.out.", layer, at, inner)
            self._stages.append(stage)
        at = self._convolution("conv_1x1", "last.", None, "last", at)
        return self._finished("mobilenet_v2", at)

    def plain(self) -> ModelStructure:
        """Blocks in a row, each with channels of its own."""
        at = "channels-in"
        for (layer,) in _numbers(self._shapes, re.escape(self._prefix) + r"blocks\.(\d+)\..*"):
            at = self._convolution(f"blocks.{layer}", "", layer, f"channels.{layer}", at, "conv", "norm")
            self._stages.append(layer)
        return self._finished("mergenet-cnn", at)

    def _convolution(
        self,
        name: str,
        role: str,
        layer: int | None,
        out: str,
        inp: str | None,
        conv: str = "convolution",
        norm: str = "normalization",
    ) -> str:
        """Take a convolution and its norm; the axis that comes out is the one that went in where the model has none."""
        weight = f"{self._prefix}{name}.{conv}.weight"
        if weight not in self._shapes:
            return inp or out
        form: Form = "convolution" if inp is not None else "depthwise"
        self._parts.append(LogicalWeight(weight, f"{role}conv", layer, form, out, inp, tuple(self._shapes[weight])))
        for suffix, said in _STATISTICS.items():
            found = f"{self._prefix}{name}.{norm}.{suffix}"
            if found in self._shapes:
                shape = tuple(self._shapes[found])
                self._parts.append(LogicalWeight(found, f"{role}norm.{said}", layer, "vector", out, None, shape))
        return out

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes.get(f"{self._prefix}{name}.convolution.weight", (0, 0)))

    def _finished(self, family: str, at: str) -> ModelStructure:
        for name, shape in self._shapes.items():
            if re.fullmatch(r"(?:classifier(?:\.1)?|head)\.weight", name):
                self._parts.append(LogicalWeight(name, "head.weight", None, "matrix", "labels", at, tuple(shape)))
            elif re.fullmatch(r"(?:classifier(?:\.1)?|head)\.bias", name):
                self._parts.append(LogicalWeight(name, "head.bias", None, "vector", "labels", None, tuple(shape)))
        return ModelStructure("cnn", family, tuple(self._parts), len(self._stages), stages=tuple(self._stages))


def _numbers(shapes: _Shapes, pattern: str) -> list[tuple[int, ...]]:
    """The numbers that stand in the names of a pattern, each once, ascending."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return sorted({tuple(int(number) for number in match.groups()) for match in found if match})
