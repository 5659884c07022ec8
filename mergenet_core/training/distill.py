"""Output distillation: the target learns from a frozen teacher's logits as well as from the labels.

Legend: n inputs that the teacher has read, b inputs of a batch, l labels, o labels other than the input's own (l − 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from mergenet_core.spec.job import DistillSpec


def kd(student_bl: Tensor, teacher_bl: Tensor, temperature: float) -> Tensor:
    """Hinton's distillation (arXiv 1503.02531).

    Equation: T² · KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over the batch.
    """
    student_log_bl = torch.log_softmax(student_bl / temperature, dim=1)
    teacher_log_bl = torch.log_softmax(teacher_bl / temperature, dim=1)
    return _divergence(teacher_log_bl, student_log_bl).mean() * temperature**2


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
    softmax over the labels other than the example's own; the mean over the batch.
    """
    student_log_bl = torch.log_softmax(student_bl / temperature, dim=1)
    teacher_log_bl = torch.log_softmax(teacher_bl / temperature, dim=1)
    own_bl = torch.nn.functional.one_hot(labels_b, student_bl.shape[1]).bool()
    target = _divergence(_binary(teacher_log_bl, own_bl), _binary(student_log_bl, own_bl))
    non_target = _divergence(_others(teacher_log_bl, own_bl), _others(student_log_bl, own_bl))
    return (target_class_weight * target + non_target_class_weight * non_target).mean() * temperature**2


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
    """A frozen teacher's logits for every unlabelled input, or for every training example where there are none.

    The teacher reads an input in the same form every time, so its forward passes are made once, before the first step.
    Only copies are new at every step, and are read then.
    """

    logits_nl: Tensor | None
    """None where the target learns from copies."""
    spec: DistillSpec
    pool_batch_size: int | None = None
    """Unlabelled inputs per step; None if the target learns from the teacher on its training examples."""
    read_copies: Callable[[Tensor, int], Tensor] | None = None
    """The teacher's logits for copies of the training examples with these indices, made by a seed; None without any."""

    @property
    def labelled(self) -> bool:
        """Whether the teacher's loss is taken on the labelled batch."""
        return self.pool_batch_size is None and self.read_copies is None

    def combine(self, task_loss: Tensor, student_bl: Tensor, labels_b: Tensor | None, index_b: Tensor) -> Tensor:
        """The mean loss of a batch of inputs that the teacher read before the first step; see `combine_with`."""
        assert self.logits_nl is not None
        return self.combine_with(task_loss, student_bl, labels_b, self.logits_nl[index_b])

    def combine_with(
        self, task_loss: Tensor, student_bl: Tensor, labels_b: Tensor | None, teacher_bl: Tensor
    ) -> Tensor:
        """The mean loss of a batch that the target is trained on.

        The task's loss is that of the labelled batch; the other arguments belong to the same batch, or to a batch of
        inputs without labels: DKD takes the teacher's most probable label as theirs.

        Equation: KD: (1 − w)·CE + w·KD for w ≤ 1, else CE + w·KD; DKD: CE + w·DKD.
        """
        teacher_bl = teacher_bl.to(student_bl.device)
        weight, temperature = self.spec.weight, self.spec.temperature
        if self.spec.loss == "kd":
            return self.spec.task_share * task_loss + weight * kd(student_bl, teacher_bl, temperature)
        alpha, beta = self.spec.target_class_weight, self.spec.non_target_class_weight
        classes_b = teacher_bl.argmax(dim=1) if labels_b is None else labels_b
        return task_loss + weight * dkd(student_bl, teacher_bl, classes_b, temperature, alpha, beta)


def _divergence(first_log: Tensor, second_log: Tensor) -> Tensor:
    return (first_log.exp() * (first_log - second_log)).sum(dim=1)


def _binary(log_bl: Tensor, own_bl: Tensor) -> Tensor:
    own_b1 = log_bl[own_bl].unsqueeze(1)
    rest_b1 = log_bl.masked_fill(own_bl, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([own_b1, rest_b1], dim=1)


def _others(log_bl: Tensor, own_bl: Tensor) -> Tensor:
    others_bo = log_bl[~own_bl].view(log_bl.shape[0], -1)
    return torch.log_softmax(others_bo, dim=1)
