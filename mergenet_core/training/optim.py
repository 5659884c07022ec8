"""Optimizer and learning-rate schedule, both set by the job document alone."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mergenet_core.spec.job import TrainSpec


class HasParamGroups(Protocol):
    """An optimizer of torch or of DeepSpeed."""

    param_groups: list[dict[str, object]]


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW or SGD; vectors and scalars (biases, norms) are not decayed."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [weight for weight in trained if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate)
    return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum)


def learning_rate(spec: TrainSpec, step: int) -> float:
    """The learning rate of the step that follows `step` finished ones.

    Equation: η · (t+1)/w in the warm-up; after it η, η · (1 − p), η · (1 + cos πp)/2, or η/5^k past k milestones;
    p is the share of the remaining steps that is done.
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / (spec.steps - spec.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": (1.0 + math.cos(math.pi * done)) / 2,
        "step": 0.2 ** sum(done >= milestone for milestone in spec.milestones),
    }[spec.schedule]
    return spec.learning_rate * factor


def set_rate(optimizer: HasParamGroups, rate: float) -> None:
    """Set the learning rate of every group of weights."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient(model: nn.Module, spec: TrainSpec) -> None:
    """Clip the norm of the whole model's gradient, if the job asks for it."""
    if spec.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)


def state_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's tensors for a parameter, flat; of a sharded one, this process's rows. The step is left out."""
    state: dict[str, Tensor | None] = optimizer.state.get(parameter, {})
    return {key: _local(value) for key, value in state.items() if key != "step" and value is not None}


def new_state_of(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, keys: list[str], steps: int
) -> dict[str, Tensor]:
    """The named tensors of the optimizer for a parameter, flat, to be filled with those after so many steps."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    state.update({key: torch.zeros_like(parameter) for key in keys})
    if "exp_avg" in keys:
        state["step"] = torch.tensor(float(steps))
    return {key: _local(state[key]) for key in keys}


def _local(value: Tensor) -> Tensor:
    local = value.to_local() if isinstance(value, DTensor) else value
    return local.view(-1)
