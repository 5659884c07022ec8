"""Gradient steps on the stage loss alone, between the closed form and the training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mergenet_core.tasks.task import Batch
from mergenet_core.training.fit.stages import Stages

RATE = 1e-3
"""AdamW's highest learning rate; a cosine lowers it to zero."""


def refine(target: nn.Module, stages: Stages, chunks: Sequence[tuple[Tensor, Batch]], steps: int) -> None:
    """Bring the target's activations nearer to the source's, chunk after chunk.

    A chunk is the indices of its inputs and what the target reads of them. Every process makes all steps by itself, so
    that the processes keep the same weights without an exchange.
    """
    optimizer = torch.optim.AdamW(target.parameters(), lr=RATE, weight_decay=0.0)
    target.train()
    with torch.random.fork_rng(devices=[]):
        for step in range(steps):
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
            index_b, inputs = chunks[step % len(chunks)]
            with stages.watch(target):
                target(**inputs)
            optimizer.zero_grad()
            stages.loss(index_b).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    target.zero_grad()
