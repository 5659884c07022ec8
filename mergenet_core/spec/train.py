"""The part of a job document that describes a training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mergenet_core.spec.data import Strict


def _rising(shares: list[float]) -> list[float]:
    if sorted(set(shares)) != shares:
        raise ValueError(f"milestones must be ascending, and none may repeat: {shares}")
    return shares


Milestones = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1, max_length=100), AfterValidator(_rising)
]
"""Shares of a training's steps, ascending."""


class TrainSpec(Strict):
    """How a model learns: the same steps, batches and schedule in every arm."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 32
    """Examples per step, over all devices and micro-batches."""
    micro_batches: Annotated[int, Field(ge=1, le=4096)] = 1
    """Gradient accumulation: the number of forward and backward passes that a step's examples are split into."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with `momentum`."""
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 5e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Decoupled for AdamW, L2 for SGD; not applied to biases and norms."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD only."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "linear"
    """How the learning rate falls after the warm-up: to zero, or (`step`) to a fifth at each of `milestones`."""
    milestones: Milestones = Field(default=[0.3, 0.6, 0.8])
    """`step`: shares of the steps after the warm-up; the default is CIFAR-100's epochs 60, 120 and 160 of 200."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from zero."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null turns clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of forward and backward passes."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations on the validation split; default: a tenth of `steps`."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints; default: a fifth of `steps`."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be smaller than steps {self.steps}")
        return self
