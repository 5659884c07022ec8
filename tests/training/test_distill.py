"""The distillation losses against references written from the papers, one example and one label at a time."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergenet_core.spec.job import DistillSpec
from mergenet_core.tasks.task import EXCLUDED
from mergenet_core.training.distillation.distill import dkd, kd


def softmax(logits: list[float]) -> list[float]:
    exps = [math.exp(value) for value in logits]
    return [value / sum(exps) for value in exps]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def plain_kd(student: list[list[float]], teacher: list[list[float]], t: float) -> float:
    rows = [
        divergence(softmax([z / t for z in theirs]), softmax([z / t for z in ours]))
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return t * t * sum(rows) / len(rows)


def plain_dkd(
    student: list[list[float]], teacher: list[list[float]], labels: list[int], t: float, alpha: float, beta: float
) -> float:
    total = 0.0
    for ours, theirs, label in zip(student, teacher, labels, strict=True):
        p_s, p_t = softmax([z / t for z in ours]), softmax([z / t for z in theirs])
        target = divergence([p_t[label], 1 - p_t[label]], [p_s[label], 1 - p_s[label]])
        hat_s = [p / (1 - p_s[label]) for row, p in enumerate(p_s) if row != label]
        hat_t = [p / (1 - p_t[label]) for row, p in enumerate(p_t) if row != label]
        total += alpha * target + beta * divergence(hat_t, hat_s)
    return t * t * total / len(labels)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.floats(1, 8), st.floats(0, 3), st.floats(0, 9), st.integers(0, 10**6))
def test_both_losses_agree_with_the_equations(
    examples: int, labels: int, temperature: float, alpha: float, beta: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    student_bl = 3 * torch.randn(examples, labels, generator=draw, dtype=torch.float64)
    teacher_bl = 3 * torch.randn(examples, labels, generator=draw, dtype=torch.float64)
    labels_b = torch.randint(labels, (examples,), generator=draw)
    ours, theirs = student_bl.tolist(), teacher_bl.tolist()
    assert float(kd(student_bl, teacher_bl, temperature)) == pytest.approx(
        plain_kd(ours, theirs, temperature), abs=1e-6
    )
    assert float(dkd(student_bl, teacher_bl, labels_b, temperature, alpha, beta)) == pytest.approx(
        plain_dkd(ours, theirs, labels_b.tolist(), temperature, alpha, beta), abs=1e-6
    )


def test_dkd_with_the_teachers_own_weights_is_kd() -> None:
    """Equation 6 of the paper: KD = TCKD + (1 − p_t) NCKD, here for one example."""
    student_bl, teacher_bl = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    rest = 1 - float(torch.softmax(teacher_bl / 2, dim=1)[0, 3])
    decoupled = dkd(student_bl, teacher_bl, torch.tensor([3]), 2.0, 1.0, rest)
    torch.testing.assert_close(decoupled, kd(student_bl, teacher_bl, 2.0))


def test_confident_logits_stay_finite_and_have_gradients() -> None:
    student_bl = torch.tensor([[80.0, 0.0, -80.0]], requires_grad=True)
    loss = dkd(student_bl, torch.tensor([[-90.0, 0.0, 90.0]]), torch.tensor([0]), 1.0, 1.0, 8.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student_bl.grad).all()


def test_excluded_alternatives_and_missing_rows_add_nothing() -> None:
    student_bl, teacher_bl = (torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    padded = [torch.cat([rows, torch.full((4, 2), EXCLUDED, dtype=torch.float64)], dim=1).float()
              for rows in (student_bl, teacher_bl)]  # fmt: skip
    for temperature in (0.1, 4.0):
        torch.testing.assert_close(kd(*padded, temperature), kd(student_bl, teacher_bl, temperature).float())
    labels_b = torch.tensor([0, 4, 2, 1])
    torch.testing.assert_close(
        dkd(*padded, labels_b, 0.5, 1.0, 8.0), dkd(student_bl, teacher_bl, labels_b, 0.5, 1.0, 8.0).float()
    )
    assert float(kd(student_bl[:0], teacher_bl[:0], 4.0)) == 0.0


@pytest.mark.parametrize(("loss", "weight", "share"), [("kd", 0.25, 0.75), ("kd", 1, 0), ("kd", 2, 1), ("dkd", 0.5, 1)])
def test_the_task_loss_keeps_its_share(loss: Literal["kd", "dkd"], weight: float, share: float) -> None:
    assert DistillSpec(loss=loss, weight=float(weight)).task_share == share
