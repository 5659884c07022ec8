"""Optimizer and learning-rate schedule, both told by the job document alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from mergenet_core.spec.job import TrainSpec


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
    p the share of the rest done.
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
