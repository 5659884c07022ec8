"""The facts of a torch model, as pairing reads them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from mergenet_core.jobs.facts import ModelFacts


def facts(model: nn.Module, *, vocabulary: str | None = None, labels: tuple[str, ...] | None = None) -> ModelFacts:
    """What pairing needs of a model in memory; the same as `inspect_model` says of it once it is saved."""
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    config: PreTrainedConfig = model.config
    return ModelFacts(config=config.to_dict(), shapes=shapes, vocabulary=vocabulary, labels=labels)


def parameters(model: nn.Module) -> int:
    """How many trainable numbers the model has."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
