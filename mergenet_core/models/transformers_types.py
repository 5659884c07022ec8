"""The types of what transformers returns: the library ships none that can be checked, so they are declared here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import torch
import transformers
from pydantic import JsonValue
from torch import nn

from mergenet_core.spec.task_info import TASKS, TaskName


class ModelConfig(Protocol):
    """A model's config."""

    def to_dict(self) -> dict[str, JsonValue]:
        """Its entries, as in config.json."""


class LoadingInfo(TypedDict):
    """What loading found of a model's weights in its files."""

    missing_keys: Sequence[str]
    """Weights that no file has."""
    mismatched_keys: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    """Weights of another size: the name, the size in the files and the size by the config."""


class AutoClass(Protocol):
    """A class of transformers that builds the models of one task."""

    def from_config(self, config: ModelConfig, *, dtype: torch.dtype) -> nn.Module:
        """A model from scratch."""

    def from_pretrained(self, folder: Path, **settings: object) -> tuple[nn.Module, LoadingInfo]:
        """A saved model, with `output_loading_info`."""


def auto_class(task: TaskName) -> AutoClass:
    """The class of transformers that builds the task's models."""
    found: AutoClass = getattr(transformers, TASKS[task].auto_class)
    return found


def config_of_type(model_type: str, **settings: object) -> ModelConfig:
    """A config with these settings and the type's defaults. Raises: what transformers raises for wrong values."""
    config: ModelConfig = transformers.AutoConfig.for_model(model_type, **settings)
    return config


def saved_config(folder: Path, **settings: object) -> ModelConfig:
    """A saved model's config; code of the model's own is never run. Raises: what transformers raises."""
    config: ModelConfig = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **settings
    )
    return config
