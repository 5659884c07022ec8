"""Two plain networks for images, `mergenet-mlp` and `mergenet-cnn`, in the Hugging Face layout.

The names of their weights are fixed, because pairing reads them: `layers.{i}` and `head` of the MLP, `blocks.{i}.conv`,
`blocks.{i}.norm` and `head` of the CNN.

Legend: b batch, c channels, h height, w width, l labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from mergenet_core.errors import ModelRefused


class MergeNetMlpConfig(PreTrainedConfig):  # type: ignore[misc]
    """A multi-layer perceptron on flattened pixels."""

    model_type = "mergenet-mlp"

    image_size: int = 28
    num_channels: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (128, 128)


class MergeNetCnnConfig(PreTrainedConfig):  # type: ignore[misc]
    """Convolution, BatchNorm and ReLU in blocks, then global average pooling."""

    model_type = "mergenet-cnn"

    num_channels: int = 1
    channels: list[int] | tuple[int, ...] = (16, 32)
    kernel_size: int = 3
    strides: list[int] | tuple[int, ...] | None = None


class _Plain(PreTrainedModel):  # type: ignore[misc]
    main_input_name = "pixel_values"
    base_model_prefix = ""

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initial values: transformers' normal(0, 0.02) leaves a plain ReLU network without signal
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            module.reset_parameters()


class MergeNetMlp(_Plain):
    """The MLP: hidden layers with ReLU, then a linear head. Shapes: (b, c, h, w) → (b, l)."""

    config_class = MergeNetMlpConfig

    def __init__(self, config: MergeNetMlpConfig) -> None:
        super().__init__(config)
        _check_positive(config, "hidden_sizes", config.hidden_sizes)
        widths = [config.num_channels * config.image_size**2, *config.hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: object) -> ImageClassifierOutput:
        """Logits of a batch of images."""
        units = pixel_values.flatten(1)
        for layer in self.layers:
            units = torch.relu(layer(units))
        return ImageClassifierOutput(logits=self.head(units))


class Block(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images_bchw: Tensor) -> Tensor:
        """The block's feature maps."""
        return torch.relu(self.norm(self.conv(images_bchw)))


class MergeNetCnn(_Plain):
    """The CNN: blocks, global average pooling, a linear head. Shapes: (b, c, h, w) → (b, l)."""

    config_class = MergeNetCnnConfig

    def __init__(self, config: MergeNetCnnConfig) -> None:
        super().__init__(config)
        _check_positive(config, "channels", config.channels)
        strides = config.strides or [1, *[2] * (len(config.channels) - 1)]
        if len(strides) != len(config.channels):
            raise ModelRefused(f"{config.model_type}: {len(strides)} strides for {len(config.channels)} channels")
        widths = [config.num_channels, *config.channels]
        self.blocks = nn.ModuleList(
            Block(inputs, outputs, config.kernel_size, stride)
            for inputs, outputs, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.head = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: object) -> ImageClassifierOutput:
        """Logits of a batch of images."""
        maps = pixel_values
        for block in self.blocks:
            maps = block(maps)
        return ImageClassifierOutput(logits=self.head(maps.mean(dim=(2, 3))))


def _check_positive(config: PreTrainedConfig, field: str, sizes: Sequence[int]) -> None:
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ModelRefused(f"{config.model_type}: {field} must be a list of positive whole numbers, not {sizes}")
