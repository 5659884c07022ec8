"""What the training loop asks of a task: examples by index, a loss, a score.

Legend: b examples of a batch, n examples of a split, l labels, r rows, a alternatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from mergenet_core.models.processors import ImageProcessor, Processor, Tokenizer
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.spec.data import DataSpec, HeldOut
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.paths import Roots

EVALUATION_BATCH = 128
Batch: TypeAlias = Mapping[str, Tensor]
"""The tensors of some examples by name: the model's keyword arguments, and what is to be predicted."""
Outputs: TypeAlias = Mapping[str, Tensor]
"""What a model returns, by name: `logits`, or for some tasks other tensors."""
EXCLUDED = -1e30
"""The logit of an alternative that cannot be chosen: its probability is 0, also after a division by a temperature."""


@dataclass(frozen=True)
class Choices:
    """Scores of a model's alternatives, one of which it chooses in each row; a distillation compares two models'."""

    logits_ra: Tensor
    right_r: Tensor | None = None
    """The right alternative of each row; None where none is known."""
    weight: float = 1.0
    """The factor of the mean over the rows in the task's loss."""


@dataclass(frozen=True)
class TaskInputs:
    """What a task's loader makes its examples of."""

    data: DataSpec
    roots: Roots
    _: KW_ONLY
    seed: int
    """The trial's seed: it decides which examples are drawn."""
    field: str
    """Where the job document names the data, such as `target.data`; errors begin with it."""
    held_out: HeldOut | None = None
    """Where the job's source is trained on the same file: the examples that it leaves out."""
    tokenizer: Tokenizer | None = None
    images: ImageProcessor | None = None
    """None where the model's folder has no image processor: the task makes one that fits the data."""
    channels: int = 3
    """Colour channels that the model reads."""

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer of a task that reads text."""
        assert self.tokenizer is not None, "a task that reads text is loaded with a tokenizer"
        return self.tokenizer


class Examples(Protocol):
    """One split, decoded once and batched by index."""

    def __len__(self) -> int:
        """How many examples the split has."""

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """The model's keyword arguments for these examples, and what is to be predicted under the task's `targets`."""

    def evaluation_order(self) -> Tensor:
        """The order of evaluation, which keeps padding small."""


@runtime_checkable
class Augmented(Protocol):
    """Examples that training sees changed at every step."""

    def augmented_batch(self, index_b: Tensor, seed: int) -> dict[str, Tensor]:
        """Like `Examples.batch`, augmented by seed; what an example becomes is independent of the rest of the batch."""


@runtime_checkable
class Copied(Protocol):
    """Examples of which a distillation can make changed copies, whose labels are not known."""

    def with_copies(self, index_b: Tensor, seed: int) -> dict[str, Tensor]:
        """The inputs of the examples, then of a copy of each, which depends on the seed and the example's index alone.

        Shapes: (2 · b, …).
        """


@runtime_checkable
class Weighted(Protocol):
    """Examples that count differently in a step's loss, such as texts by their number of tokens to predict."""

    def weights(self, index_b: Tensor) -> Tensor:
        """The weight of each example, a whole number. Shapes: (b)."""


class Task(Protocol):
    """Data, loss and metric of one task."""

    @property
    def metric(self) -> str:
        """The name of the metric that selection and report use; higher is better."""

    @property
    def targets(self) -> frozenset[str]:
        """The keys of a batch that are not passed to the model."""

    @property
    def evaluation_batch(self) -> int:
        """Examples of a forward pass in evaluation, where the training batch is smaller."""

    @property
    def row_outputs(self) -> tuple[str, ...]:
        """The outputs that `choices` reads, where each has one row per example, with a number per label.

        A frozen teacher's are then stored for all examples. Empty where they are larger, or depend on the batch.
        """

    @property
    def labels(self) -> tuple[str, ...]:
        """The label space, in the head's row order."""

    @property
    def train(self) -> Examples:
        """What the model learns from."""

    @property
    def validation(self) -> Examples:
        """What weights are selected by."""

    @property
    def test(self) -> Examples:
        """What the report is measured on."""

    @property
    def unlabelled(self) -> Examples | None:
        """Inputs without labels; None where the job gives none."""

    @property
    def processor(self) -> Processor:
        """The tokenizer or image processor that made the examples; saved with the model."""

    @property
    def settings(self) -> Mapping[str, int | None]:
        """Config values of a model from scratch that follow from the data."""

    @property
    def data_summary(self) -> Mapping[str, SplitSummary]:
        """What was read of each split."""

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The mean loss of a batch: each example counts the same, or by its weight where examples are `Weighted`."""

    def choices(self, outputs: Outputs, batch: Batch) -> tuple[Choices, ...]:
        """What a model chooses of in a batch, for the comparison with a teacher that read the same examples.

        The distillation's loss is the mean over the entries. The batch may be without targets.
        """

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """What is kept of a forward pass for `measure`: one row per example, of the same shape in every batch."""

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """The metrics of a split, `metric` among them, from the answers of all its examples in their order."""

    def terms(self, answers_n: Tensor, examples: Examples) -> Tensor:
        """What each item of a split (an example, question or image) adds to `metric`, which is the mean of all terms.

        Two models are compared by it item by item.
        """


def pool_of(task: Task) -> Examples:
    """Inputs whose labels are not used: the unlabelled ones, or the training examples where there are none."""
    return task.train if task.unlabelled is None else task.unlabelled


@dataclass(frozen=True)
class Classification:
    """A task whose examples have one label each: cross entropy and accuracy."""

    labels: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    processor: Processor
    unlabelled: Examples | None = None
    settings: Mapping[str, int | None] = field(default_factory=dict)
    data_summary: Mapping[str, SplitSummary] = field(default_factory=dict)
    metric: str = TASKS["text-classification"].metric
    targets: frozenset[str] = frozenset({"labels"})
    row_outputs: tuple[str, ...] = ("logits",)
    evaluation_batch: int = EVALUATION_BATCH

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Cross entropy. Shapes: logits (b, l), labels (b)."""
        return torch.nn.functional.cross_entropy(outputs["logits"].float(), batch["labels"])

    def choices(self, outputs: Outputs, batch: Batch) -> tuple[Choices, ...]:
        """One of the labels for each example. Shapes: (b, l)."""
        return (Choices(outputs["logits"].float(), batch.get("labels")),)

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """1 where the largest logit is the label's. Shapes: (b)."""
        right_b: Tensor = outputs["logits"].argmax(dim=1) == batch["labels"]
        return right_b.float()

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """The share of examples whose answer is right."""
        return {self.metric: float(answers_n.double().mean())}

    def terms(self, answers_n: Tensor, examples: Examples) -> Tensor:
        """1 for each example whose answer is right. Shapes: (n)."""
        return answers_n
