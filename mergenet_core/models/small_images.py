"""ResNet and MobileNetV2 for small images, 32 × 32: transformers' models with another stem and the same names.

ImageNet's stems make an image four times smaller before the first block, which leaves little of 32 pixels. With 100
classes the ResNet-50 of the defaults has 23,705,252 parameters; the MobileNetV2 has 2,351,972, without the biases
before a BatchNorm with which other versions come to 2.37 million.

Legend: b batch, c channels, h height, w width, l labels.
"""

from __future__ import annotations

from torch import nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class MergeNetResNetConfig(ResNetConfig):  # type: ignore[misc]
    """A ResNet for small images; the defaults are those of ResNet-50."""

    model_type = "mergenet-resnet"


class MergeNetMobileNetV2Config(MobileNetV2Config):  # type: ignore[misc]
    """A MobileNetV2 for small images."""

    model_type = "mergenet-mobilenet-v2"

    image_size: int = 32
    tf_padding: bool = False
    classifier_dropout_prob: float = 0.0


class MergeNetResNet(ResNetForImageClassification):  # type: ignore[misc]
    """A ResNet whose stem is a 3 × 3 convolution of stride 1, without pooling. Shapes: (b, c, h, w) → (b, l)."""

    config_class = MergeNetResNetConfig

    def __init__(self, config: MergeNetResNetConfig) -> None:
        super().__init__(config)
        embedder = self.resnet.embedder
        embedder.embedder = ResNetConvLayer(
            config.num_channels, config.embedding_size, kernel_size=3, stride=1, activation=config.hidden_act
        )
        embedder.pooler = nn.Identity()
        self.post_init()


class MergeNetMobileNetV2(MobileNetV2ForImageClassification):  # type: ignore[misc]
    """A MobileNetV2 that makes an image eight times smaller, not thirty-two. Shapes: (b, c, h, w) → (b, l).

    The stem and the first stage that would halve it keep its size.
    """

    config_class = MergeNetMobileNetV2Config

    def __init__(self, config: MergeNetMobileNetV2Config) -> None:
        super().__init__(config)
        body = self.mobilenet_v2
        halving = [layer.conv_3x3.convolution for layer in body.layer if layer.conv_3x3.convolution.stride != (1, 1)]
        for convolution in (body.conv_stem.first_conv.convolution, *halving[:1]):
            convolution.stride = (1, 1)
        for norm in (module for module in body.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = 0.1  # transformers' 0.997 is TensorFlow's decay: here it would keep the last batch alone
