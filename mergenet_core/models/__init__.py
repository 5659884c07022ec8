"""Models: safe loading, the built-in plain networks, processors, export. Importing it registers the built-in ones."""

from transformers import AutoConfig, AutoModelForImageClassification

from mergenet_core.models.builtin import MergeNetCnn, MergeNetCnnConfig, MergeNetMlp, MergeNetMlpConfig
from mergenet_core.models.small_images import (
    MergeNetMobileNetV2,
    MergeNetMobileNetV2Config,
    MergeNetResNet,
    MergeNetResNetConfig,
)

BUILT_IN = (
    (MergeNetMlpConfig, MergeNetMlp),
    (MergeNetCnnConfig, MergeNetCnn),
    (MergeNetResNetConfig, MergeNetResNet),
    (MergeNetMobileNetV2Config, MergeNetMobileNetV2),
)
for _config, _model in BUILT_IN:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)

__all__ = ["BUILT_IN", *(kind.__name__ for kinds in BUILT_IN for kind in kinds)]
