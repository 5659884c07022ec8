"""Output distillation: the target learns from a frozen teacher's outputs as well as from the labels.

Legend: b rows of a batch, l alternatives of a row such as labels, o alternatives other than the row's own (l − 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from mergenet_core.spec.job import DistillSpec
from mergenet_core.tasks.task import Batch, Choices, Outputs, Task

ReadTeacher: TypeAlias = Callable[[Tensor, int], Outputs]
"""Indices of examples, and the seed of their copies → the teacher's outputs for them, on the process's device."""


def kd(student_bl: Tensor, teacher_bl: Tensor, temperature: float) -> Tensor:
    """Hinton's distillation (arXiv 1503.02531).

    Equation: T² · KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over the rows; 0 without any.
    """
    student_log_bl = torch.log_softmax(student_bl / temperature, dim=1)
    teacher_log_bl = torch.log_softmax(teacher_bl / temperature, dim=1)
    return _mean(_divergence(teacher_log_bl, student_log_bl)) * temperature**2


def dkd(
    student_bl: Tensor,
    teacher_bl: Tensor,
    labels_b: Tensor,
    temperature: float,
    target_class_weight: float,
    non_target_class_weight: float,
) -> Tensor:
    """Decoupled distillation (arXiv 2203.08679, equation 7): the label's probability, and the shape of the others.

    Equation: T² · (α · KL(b_teacher ‖ b_student) + β · KL(p̂_teacher ‖ p̂_student)), b = (p_t, 1 − p_t) and p̂ the
    softmax over the labels other than the row's own; the mean over the rows.
    """
    student_log_bl = torch.log_softmax(student_bl / temperature, dim=1)
    teacher_log_bl = torch.log_softmax(teacher_bl / temperature, dim=1)
    own_bl = torch.zeros_like(student_bl, dtype=torch.bool).scatter_(1, labels_b[:, None], True)
    target = _divergence(_binary(teacher_log_bl, own_bl), _binary(student_log_bl, own_bl))
    non_target = _divergence(_others(teacher_log_bl, own_bl), _others(student_log_bl, own_bl))
    return _mean(target_class_weight * target + non_target_class_weight * non_target) * temperature**2


class Relabelled(nn.Module):
    """A classifier with its logits in another order of the same labels."""

    columns_l: Tensor

    def __init__(self, model: nn.Module, columns: list[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("columns_l", torch.tensor(columns))

    def forward(self, **inputs: Tensor) -> ImageClassifierOutput:
        """The model's logits, reordered. Shapes: (b, l)."""
        return ImageClassifierOutput(logits=self.model(**inputs).logits[:, self.columns_l])


@dataclass(frozen=True)
class Distillation:
    """A frozen teacher's outputs for the inputs of a step, and how the target learns from them.

    The inputs are unlabelled ones, or the training examples with their copies, or else the training examples.
    """

    spec: DistillSpec
    read: ReadTeacher
    pool_batch_size: int | None = None
    """Unlabelled inputs per step; None if the target learns from the teacher on its training examples."""

    @property
    def labelled(self) -> bool:
        """Whether the teacher's loss is taken on the labelled batch itself."""
        return self.pool_batch_size is None and not self.spec.copies

    def loss(self, task: Task, outputs: Outputs, batch: Batch, index_b: Tensor, draw: int) -> Tensor:
        """The teacher's loss on a batch that the target has read, with its weight.

        DKD takes the teacher's most probable alternative as the right one where none is known.

        Equation: w · the mean over the task's `choices` of KD or DKD, each with its own weight; the step's loss is
        (1 − w) · the task's + this for KD with w ≤ 1, else the task's + this.
        """
        taught = self.read(index_b, draw)
        pairs = zip(task.choices(outputs, batch), task.choices(taught, batch), strict=True)
        losses = [student.weight * self._divergence(student, teacher) for student, teacher in pairs]
        return self.spec.weight * torch.stack(losses).mean()

    def _divergence(self, student: Choices, teacher: Choices) -> Tensor:
        spec, teacher_ra = self.spec, teacher.logits_ra
        if spec.loss == "kd":
            return kd(student.logits_ra, teacher_ra, spec.temperature)
        right_r = teacher_ra.argmax(dim=1) if student.right_r is None else student.right_r
        alpha, beta = spec.target_class_weight, spec.non_target_class_weight
        return dkd(student.logits_ra, teacher_ra, right_r, spec.temperature, alpha, beta)


def _mean(values_b: Tensor) -> Tensor:
    return values_b.sum() / max(1, len(values_b))


def _divergence(first_log: Tensor, second_log: Tensor) -> Tensor:
    return (first_log.exp() * (first_log - second_log)).sum(dim=1)


def _binary(log_bl: Tensor, own_bl: Tensor) -> Tensor:
    own_b1 = log_bl[own_bl].unsqueeze(1)
    rest_b1 = log_bl.masked_fill(own_bl, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([own_b1, rest_b1], dim=1)


def _others(log_bl: Tensor, own_bl: Tensor) -> Tensor:
    others_bo = log_bl[~own_bl].view(log_bl.shape[0], -1)
    return torch.log_softmax(others_bo, dim=1)
