"""Schedules at their corners, and which weights are decayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mergenet_core.spec.job import TrainSpec
from mergenet_core.training.optim import learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
        ("step", [0.5, 1.0, 1.0, 1.0, 0.2, 0.04]),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_falls_after_it(schedule: str, rates: list[float]) -> None:
    spec = TrainSpec(steps=6, warmup_steps=2, learning_rate=1.0, schedule=schedule)
    assert [learning_rate(spec, step) for step in range(6)] == pytest.approx(rates, abs=1e-6)


def test_milestones_can_be_named_and_are_the_papers_otherwise() -> None:
    halves = TrainSpec(steps=4, learning_rate=1.0, schedule="step", milestones=[0.5])
    assert [learning_rate(halves, step) for step in range(4)] == pytest.approx([1.0, 1.0, 0.2, 0.2])
    paper = TrainSpec(steps=78_125, learning_rate=0.1, schedule="step")
    falls = [step for step in range(1, 78_125) if learning_rate(paper, step) != learning_rate(paper, step - 1)]
    assert [round(step * 128 / 50_000) for step in falls] == [60, 120, 160]


def test_biases_and_norms_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    for optimizer in ("adamw", "sgd"):
        made = make_optimizer(model, TrainSpec(steps=1, optimizer=optimizer, weight_decay=0.3))
        decay = {weight: group["weight_decay"] for group in made.param_groups for weight in group["params"]}
        assert decay == {model[0].weight: 0.3, model[0].bias: 0.0, model[1].weight: 0.0, model[1].bias: 0.0}


def test_sgd_has_the_momentum_that_was_asked_for() -> None:
    made = make_optimizer(nn.Linear(2, 2), TrainSpec(steps=1, optimizer="sgd", momentum=0.5))
    assert isinstance(made, torch.optim.SGD)
    assert made.param_groups[0]["momentum"] == 0.5
