"""Visual question answering, as in VQA v2.0: the model chooses one of the training split's frequent answers.

The loss is binary cross entropy over all labels, not cross entropy over one: several answers can be right, each as far
as people gave it, and where none of the labels is right the model has to reject them all.

Legend: b questions of a batch, n questions of a split, l labels, p pairs of a question and a label that is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import Processor, TextAndImages
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.data.images import check_channels
from mergenet_core.tasks.data.pixels import Pixels, fit_processor, read_pixels
from mergenet_core.tasks.data.splits import read_splits
from mergenet_core.tasks.data.tokens import Tokens, text_settings, tokenise
from mergenet_core.tasks.data.unlabelled import read_unlabelled
from mergenet_core.tasks.task import EVALUATION_BATCH, Batch, Choices, Examples, Outputs, TaskInputs
from mergenet_core.tasks.visual_question_answering.scores import PeoplesAnswers, normalise
from mergenet_core.tasks.visual_question_answering.vqa import Question, QuestionSplit, read_questions


@dataclass(frozen=True)
class AnswerLabels:
    """The labels of a task, found by people's answers."""

    labels: tuple[str, ...]
    by_text: Mapping[str, tuple[int, ...]]
    """The label that is spelt so."""
    by_normal: Mapping[str, tuple[int, ...]]
    """The labels that are equal once they are normalised, such as `cat` and `the cat`."""

    @classmethod
    def of(cls, labels: tuple[str, ...]) -> AnswerLabels:
        """Index labels by both forms in which an answer is compared."""
        by_normal: dict[str, tuple[int, ...]] = {}
        for number, label in enumerate(labels):
            key = normalise(label)
            by_normal[key] = (*by_normal.get(key, ()), number)
        return cls(labels, {label: (number,) for number, label in enumerate(labels)}, by_normal)

    def right(self, answers: PeoplesAnswers) -> Iterator[tuple[int, float]]:
        """Every label that answers a question at least partly, with its score as the model's answer."""
        numbers = self.by_text if answers.unanimous else self.by_normal
        for answer, score in answers.scores().items():
            for number in numbers.get(answer, ()):
                yield number, score


@dataclass(frozen=True)
class ImageQuestions:
    """A split of questions on images."""

    tokens: Tokens
    pixels: Pixels
    image_n: Tensor
    """The index in `pixels` of each question's image."""
    questions: tuple[Question, ...]
    labels: AnswerLabels
    answered: bool = True
    """Whether batches have the labels' scores."""

    def __len__(self) -> int:
        """How many questions there are."""
        return len(self.questions)

    @property
    def image_count(self) -> int:
        """How many images the questions are on."""
        return int(self.image_n.max()) + 1

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids, mask, pixels, and what each label scores. Shapes: (b, longest), (b, c, h, w), scores (b, l)."""
        inputs = {**self.tokens.batch(index_b), "pixel_values": self.pixels.batch(self.image_n[index_b])}
        if not self.answered:
            return inputs
        scores_bl = torch.zeros(len(index_b), len(self.labels.labels))
        for row, index in enumerate(index_b.tolist()):
            for label, score in self.labels.right(self.questions[index].answers):
                scores_bl[row, label] = score
        return {**inputs, "scores": scores_bl}

    def evaluation_order(self) -> Tensor:
        """Sorted by length."""
        return torch.argsort(self.tokens.lengths_n, stable=True)


@dataclass(frozen=True)
class VisualQuestionAnswering:
    """Binary cross entropy over the labels, and VQA's accuracy."""

    labels: tuple[str, ...]
    train: ImageQuestions
    validation: ImageQuestions
    test: ImageQuestions
    processor: Processor
    settings: Mapping[str, int | None]
    data_summary: Mapping[str, SplitSummary]
    unlabelled: ImageQuestions | None = None
    metric: str = TASKS["visual-question-answering"].metric
    targets: frozenset[str] = field(default=frozenset({"scores"}))
    row_outputs: tuple[str, ...] = ("logits",)
    evaluation_batch: int = EVALUATION_BATCH

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Binary cross entropy summed over labels, each label's score as its probability. Shapes: logits (b, l)."""
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        return entropy(outputs["logits"].float(), batch["scores"], reduction="sum") / len(batch["scores"])

    def choices(self, outputs: Outputs, batch: Batch) -> tuple[Choices, ...]:
        """For each label whether it answers, one against the rest, summed over labels as in the loss.

        Several labels can be right, so their probabilities do not add up to 1 (arXiv 2308.06453). Shapes: (b · l, 2).
        """
        logits_bl = outputs["logits"].float()
        yes_no = torch.stack([logits_bl, torch.zeros_like(logits_bl)], dim=2)
        return (Choices(yes_no.flatten(0, 1), weight=float(logits_bl.shape[1])),)

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The likeliest label. Shapes: (b)."""
        found_b: Tensor = outputs["logits"].argmax(dim=1)
        return found_b

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """VQA's accuracy over all questions, and over those of each answer type where the file gives types."""
        assert isinstance(examples, ImageQuestions)
        scores: dict[str, list[float]] = {self.metric: []}
        for question, score in zip(examples.questions, self.terms(answers_n, examples).tolist(), strict=True):
            scores[self.metric].append(score)
            if question.answer_type:
                scores.setdefault(f"{question.answer_type}_{self.metric}", []).append(score)
        return {name: sum(found) / len(found) for name, found in sorted(scores.items())}

    def terms(self, answers_n: Tensor, examples: Examples) -> Tensor:
        """VQA's accuracy of each question. Shapes: (n)."""
        assert isinstance(examples, ImageQuestions)
        chosen = [self.labels[int(label)] for label in answers_n.tolist()]
        scores = [question.answers.score(one) for question, one in zip(examples.questions, chosen, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)


def load_visual_question_answering(inputs: TaskInputs) -> VisualQuestionAnswering:
    """The task's examples for one trial; limits count questions, and the questions on one image are never split.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, tokenizer, channels = inputs.data, inputs.text_tokenizer, inputs.channels
    check_channels(channels, inputs.field)

    def read(split: str) -> QuestionSplit:
        return read_questions(inputs, split)

    def images_n(split: QuestionSplit) -> Tensor:
        return split.image_n

    splits = read_splits(inputs, read, groups_n=images_n)
    pool = read_unlabelled(inputs, splits, read, groups_n=images_n)
    labels = _frequent_answers(splits.train.questions, data.answer_limit, f"{inputs.field}.train")
    processor = fit_processor(inputs.images, splits.train.images, data.image_size, channels)
    indexed = AnswerLabels.of(labels)

    def examples(split: QuestionSplit, rows: Tensor) -> ImageQuestions:
        images, image_n = torch.unique(split.image_n[rows], return_inverse=True)
        questions = tuple(split.questions[row] for row in rows.tolist())
        tokens = tokenise([question.text for question in questions], tokenizer, data.max_length)
        pixels = read_pixels(split.images.select(images), processor, data.image_size, channels)
        return ImageQuestions(tokens, pixels, image_n, questions, indexed)

    train, validation, test = splits.each(examples)
    unlabelled = None if pool is None else replace(examples(pool.split, pool.rows), answered=False)
    summary = splits.summary(images=(train.image_count, validation.image_count, test.image_count))
    if pool is not None and unlabelled is not None:
        summary |= pool.summary(images=unlabelled.image_count)
    return VisualQuestionAnswering(
        labels=labels,
        train=train,
        validation=validation,
        test=test,
        processor=TextAndImages(tokenizer, processor),
        unlabelled=unlabelled,
        settings=text_settings(tokenizer) | {"image_size": data.image_size, "num_channels": channels},
        data_summary=summary,
    )


def _frequent_answers(questions: Sequence[Question], limit: int, field: str) -> tuple[str, ...]:
    """The answers that most questions have, the most frequent first, as they are compared at those questions.

    A model answers with a label, and where people agree its answer is compared as it is: `t-shirt` from such questions
    and `t shirt` from others are two labels. Raises: `DataRefused` where all questions have one answer.
    """
    counted = Counter(question.answers.most_common for question in questions if question.answers.most_common)
    if len(counted) < 2:
        raise DataRefused(f"{field}: every question has the answer {''.join(counted)!r}; at least two are needed")
    return tuple(sorted(counted, key=lambda answer: (-counted[answer], answer))[:limit])
