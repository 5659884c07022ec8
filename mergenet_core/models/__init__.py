"""Models: safe loading, the built-in plain networks, processors, export. Importing it registers the built-in ones."""

from transformers import AutoConfig, AutoModelForImageClassification

from mergenet_core.models.builtin import (
    MergeNetCnn,
    MergeNetCnnConfig,
    MergeNetMlp,
    MergeNetMlpConfig,
)

for _config, _model in ((MergeNetMlpConfig, MergeNetMlp), (MergeNetCnnConfig, MergeNetCnn)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)

__all__ = ["MergeNetCnn", "MergeNetCnnConfig", "MergeNetMlp", "MergeNetMlpConfig"]
