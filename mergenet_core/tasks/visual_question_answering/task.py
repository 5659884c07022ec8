"""Visual question answering, as in VQA v2.0: one of the training split's frequent answers is chosen for each question.

The loss is binary cross entropy over all labels, not cross entropy over one: several answers are right at once, each
to the degree to which people gave it, and where none of the labels is right all of them are to be denied.

Legend: b questions of a batch, n questions of a split, l labels, p pairs of a question and a label that is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import Processor, TextAndImages
from mergenet_core.tasks.data.pixels import Pixels, check_channels, fitted, read_pixels
from mergenet_core.tasks.data.ragged_tensor import Ragged
from mergenet_core.tasks.data.sampling import draw
from mergenet_core.tasks.data.tokens import tokenised
from mergenet_core.tasks.task import EVALUATION_BATCH, Batch, Examples, Outputs, TaskInputs
from mergenet_core.tasks.visual_question_answering.scores import accuracies, accuracy
from mergenet_core.tasks.visual_question_answering.vqa import Question, Questions, read_questions


@dataclass(frozen=True)
class Asked:
    """A split of questions on images."""

    tokens: Ragged
    fill: Mapping[str, int]
    pixels: Pixels
    image_n: Tensor
    """The image of each question, as a place in `pixels`."""
    questions: tuple[Question, ...]
    labels: Mapping[str, int]

    def __len__(self) -> int:
        """How many questions there are."""
        return len(self.questions)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids, mask, pixels, and what each label scores. Shapes: (b, longest), (b, c, h, w), scores (b, l)."""
        scores_bl = torch.zeros(len(index_b), len(self.labels))
        for row, place in enumerate(index_b.tolist()):
            for answer, score in accuracies(self.questions[place].judged).items():
                label = self.labels.get(answer)
                if label is not None:
                    scores_bl[row, label] = score
        pixels = self.pixels.batch(self.image_n[index_b])
        return {**self.tokens.padded(index_b, self.fill), "pixel_values": pixels, "scores": scores_bl}

    def evaluation_order(self) -> Tensor:
        """Sorted by length."""
        return torch.argsort(self.tokens.lengths_n, stable=True)


@dataclass(frozen=True)
class VisualQuestionAnswering:
    """A task whose answer is a label that people gave: binary cross entropy, and VQA's accuracy."""

    labels: tuple[str, ...]
    train: Asked
    validation: Asked
    test: Asked
    processor: Processor
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    metric: str = "accuracy"
    targets: frozenset[str] = field(default=frozenset({"scores"}))
    evaluation_batch: int = EVALUATION_BATCH

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Binary cross entropy summed over labels, each label's score as its probability. Shapes: logits (b, l)."""
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        return entropy(outputs["logits"].float(), batch["scores"], reduction="sum") / len(batch["scores"])

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The likeliest label. Shapes: (b)."""
        found_b: Tensor = outputs["logits"].argmax(dim=1)
        return found_b

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """VQA's accuracy over all questions and over those of each answer type, where types are told."""
        assert isinstance(examples, Asked)
        chosen = [self.labels[int(label)] for label in answers_n.tolist()]
        scored = [
            (question.kind, accuracy(answer, question.judged))
            for question, answer in zip(examples.questions, chosen, strict=True)
        ]
        kinds = sorted({kind for kind, _ in scored if kind})
        parts = {f"{kind}_{self.metric}": [score for its, score in scored if its == kind] for kind in kinds}
        return {name: sum(of) / len(of) for name, of in {self.metric: [score for _, score in scored], **parts}.items()}


def load_visual_question_answering(inputs: TaskInputs) -> VisualQuestionAnswering:
    """The task's examples for one trial; limits count questions, and one image's questions stay on one side.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, roots, field, channels = inputs.data, inputs.roots, inputs.field, inputs.channels
    tokenizer = inputs.text_tokenizer
    check_channels(channels, field)
    train, test = (read_questions(data, split, roots, field) for split in ("train", "test"))
    train_rows, held_rows = draw(data, len(train.rows), seed=inputs.seed, field=field, groups_n=train.image_n)
    validation = train
    if data.validation is not None:
        validation = read_questions(data, "validation", roots, field)
        held_rows = torch.arange(len(validation.rows))
    labels = frequent(train.rows, data.answer_limit, f"{field}.train")
    images = fitted(inputs.images, train.pictures, train.picture_rows, data, channels)
    numbers = {answer: label for label, answer in enumerate(labels)}

    def asked(split: Questions, rows: Tensor) -> Asked:
        shown, image_n = torch.unique(split.image_n[rows], return_inverse=True)
        questions = tuple(split.rows[row] for row in rows.tolist())
        tokens, fill = tokenised([one.text for one in questions], tokenizer, data.max_length)
        pixels = read_pixels(split.pictures, data, split.picture_rows[shown], images, channels)
        return Asked(tokens, fill, pixels, image_n, questions, numbers)

    def facts(split: Questions, examples: Asked) -> dict[str, Any]:
        return {"examples": len(examples), "images": int(examples.image_n.max()) + 1, "sha256": split.sha256}

    learned, held = asked(train, train_rows), asked(validation, held_rows)
    tested = asked(test, torch.arange(len(test.rows)))
    return VisualQuestionAnswering(
        labels=labels,
        train=learned,
        validation=held,
        test=tested,
        processor=TextAndImages(tokenizer, images),
        settings={
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "image_size": data.image_size,
            "num_channels": channels,
        },
        facts={
            "train": {**facts(train, learned), "of": len(train.rows)},
            "validation": facts(validation, held),
            "test": facts(test, tested),
        },
    )


def frequent(questions: Sequence[Question], limit: int, field: str) -> tuple[str, ...]:
    """The answers that most questions have, the most frequent first. Raises: `DataRefused` where all have one."""
    counted = Counter(question.usual for question in questions if question.usual)
    if len(counted) < 2:
        raise DataRefused(f"{field}: every question has the answer {''.join(counted)!r}; at least two are needed")
    return tuple(sorted(counted, key=lambda answer: (-counted[answer], answer))[:limit])
