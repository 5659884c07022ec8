"""What pairing needs to know of a torch model."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from mergenet_core.model_files.model_info import ModelInfo, Vocabulary


def model_info(
    model: nn.Module, *, vocabulary: Vocabulary | None = None, labels: tuple[str, ...] | None = None
) -> ModelInfo:
    """What pairing needs of a model in memory; the same as `inspect_model` finds once it is saved."""
    weights = model.state_dict(keep_vars=True)
    # a weight that DeepSpeed has already cut up keeps its shape under another name
    shapes = {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in weights.items()}
    config: PreTrainedConfig = model.config
    return ModelInfo(config=config.to_dict(), shapes=shapes, vocabulary=vocabulary, labels=labels)


def count_parameters(model: nn.Module) -> int:
    """How many trainable numbers the model has."""
    return sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters() if weight.requires_grad)
