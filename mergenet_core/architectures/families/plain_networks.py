"""The two plain networks that are built in: `mergenet-mlp` and `mergenet-cnn` (`mergenet_core/models/builtin.py`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mergenet_core.architectures.axes import Shapes
from mergenet_core.architectures.declare import classifier, convolution, linear
from mergenet_core.architectures.schema import Blocks, Dimensions, Family, WeightSpec, label_count
from mergenet_core.spec.json_values import JsonObject, get_int, get_ints


def _mlp_dimensions(config: JsonObject) -> Dimensions:
    sizes = get_ints(config, "hidden_sizes", default=(128, 128))
    pixels = get_int(config, "num_channels", default=1) * get_int(config, "image_size", default=28) ** 2
    units = {f"units.{layer}": size for layer, size in enumerate(sizes)}
    return Dimensions(layers=len(sizes), axes={"pixels": pixels, **units, "labels": label_count(config)})


class _Mlp:
    """Linear layers in a row."""

    def of_config(self, config: JsonObject, dimensions: Dimensions) -> Sequence[WeightSpec]:
        """See `Body`."""
        return self._of_layers(range(dimensions.layers))

    def of_shapes(self, shapes: Shapes) -> Sequence[WeightSpec]:
        """See `Body`."""
        return self._of_layers(_numbers(shapes, r"layers\.(\d+)\.weight"))

    def _of_layers(self, layers: Sequence[int]) -> Sequence[WeightSpec]:
        axes = ("pixels", *(f"units.{layer}" for layer in layers))
        return [
            spec.in_layer(layer)
            for layer in layers
            for spec in linear("layers.{layer}", "layer", axes[layer + 1], axes[layer])
        ]


def _cnn_dimensions(config: JsonObject) -> Dimensions:
    channels = get_ints(config, "channels", default=(16, 32))
    axes = {f"channels.{block}": count for block, count in enumerate(channels)}
    inputs = get_int(config, "num_channels", default=1)
    return Dimensions(layers=len(channels), axes={"channels-in": inputs, **axes, "labels": label_count(config)})


class _Cnn:
    """Blocks in a row, each with channels of its own."""

    def of_config(self, config: JsonObject, dimensions: Dimensions) -> Sequence[WeightSpec]:
        """See `Body`."""
        return self._of_blocks(range(dimensions.layers), get_int(config, "kernel_size", default=3))

    def of_shapes(self, shapes: Shapes) -> Sequence[WeightSpec]:
        """See `Body`."""
        return self._of_blocks(_numbers(shapes, r"blocks\.(\d+)\.conv\.weight"))

    def _of_blocks(self, blocks: Sequence[int], kernel: int = 3) -> Sequence[WeightSpec]:
        axes = ("channels-in", *(f"channels.{block}" for block in blocks))
        return [
            spec
            for block in blocks
            for spec in convolution(
                f"blocks.{block}",
                "",
                block,
                axes[block + 1],
                axes[block],
                kernel,
                stage=block,
                conv="conv",
                norm="norm",
            )
        ]


def _numbers(shapes: Shapes, pattern: str) -> Sequence[int]:
    """0, 1, 2, … as far as the names go."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return range(1 + max((int(match[1]) for match in found if match), default=-1))


MERGENET_MLP = Family(
    name="mergenet-mlp",
    kind="mlp",
    model_types=("mergenet-mlp",),
    dimensions=_mlp_dimensions,
    body=_Mlp(),
    entrance="layers.0.weight",
    heads={"image-classification": classifier("head")},
)
MERGENET_CNN = Family(
    name="mergenet-cnn",
    kind="cnn",
    model_types=("mergenet-cnn",),
    dimensions=_cnn_dimensions,
    body=_Cnn(),
    entrance="blocks.0.conv.weight",
    blocks=Blocks(modules=r"blocks\.\d+"),
    heads={"image-classification": classifier("head")},
)
