"""A source's architecture with freshly initialised weights: what a transfer gives without any training behind it."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn
from transformers import AutoModel

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.models.loading import body_prefix, initial_weight, names_in_files
from mergenet_core.models.transformers_types import ModelConfig, auto_class, config_of_type
from mergenet_core.spec.task_info import TaskName

_NOT_SETTINGS = ("model_type", "architectures", "torch_dtype", "dtype", "transformers_version")


def untrained_weights(info: ModelInfo, task: TaskName, seed: int, device: torch.device | None) -> dict[str, Tensor]:
    """Weights under a source's names and in its shapes, as its config initialises them; in single precision.

    The seed is not used as it is: a target from the same config and seed would begin with the same weights. A weight
    that the task's model does not have, such as another task's head, is drawn as a new head is. Other random numbers
    are not affected. Raises: `ModelRefused` for a config of which no model can be built.
    """
    own_seed = zlib.crc32(f"{seed} untrained source".encode())
    settings = {key: value for key, value in info.config.items() if key not in _NOT_SETTINGS}
    try:
        config = config_of_type(str(info.config["model_type"]), **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own_seed)
            model = _build(config, task)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelRefused(
            f"the arm sham-untrained: no {info.config['model_type']} can be built from the source's config: {reason}"
        ) from error
    prefix = body_prefix(model)
    fresh = {found: W for name, W in model.state_dict().items() for found in reversed(names_in_files(name, prefix))}
    weights = {}
    for name, shape in info.shapes.items():
        W = fresh.get(name)
        if W is None or W.shape != torch.Size(shape):
            W = initial_weight(name, tuple(shape), config, own_seed)
        weights[name] = (W.float() if W.is_floating_point() else W).to(device)
    return weights


def _build(config: ModelConfig, task: TaskName) -> nn.Module:
    """The task's model, or the bare one where the architecture does not learn the task. Raises: `ValueError`."""
    try:
        return auto_class(task).from_config(config, dtype=torch.float32)
    except ValueError:
        bare: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
        return bare
