"""Extractive question answering with unanswerable questions, as in SQuAD v2.0.

A window's answer is the best of its spans, a question's answer is the best of its windows. A question counts as
unanswerable where the null token's score exceeds the answer's by more than a threshold, which is chosen on validation
with the same weights.

Legend: b windows of a batch, n windows of a split, t tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import Processor
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.data.splits import read_splits
from mergenet_core.tasks.data.tokens import text_settings
from mergenet_core.tasks.data.unlabelled import read_unlabelled
from mergenet_core.tasks.question_answering.scores import Judged, best_threshold, f1, question_scores, squad_scores
from mergenet_core.tasks.question_answering.squad import QuestionSplit, read_questions
from mergenet_core.tasks.question_answering.windows import TARGETS, Windows, read_windows
from mergenet_core.tasks.task import EVALUATION_BATCH, EXCLUDED, Batch, Choices, Examples, Outputs, TaskInputs

ANSWER_TOKENS = 30
"""The longest answer in tokens, as in BERT."""
NO_SPAN = -1e4
"""The best span's score minus the null token's in a window without any token of the text."""


@dataclass(frozen=True)
class QuestionAnswering:
    """The answer is a span of the text, or none: cross entropy over its ends, exact match and F1."""

    train: Windows
    validation: Windows
    test: Windows
    processor: Processor
    settings: Mapping[str, int | None]
    data_summary: Mapping[str, SplitSummary]
    unlabelled: Windows | None = None
    labels: tuple[str, ...] = TASKS["question-answering"].fixed_labels or ()
    metric: str = TASKS["question-answering"].metric
    targets: frozenset[str] = field(default=TARGETS)
    row_outputs: tuple[str, ...] = ()
    evaluation_batch: int = EVALUATION_BATCH

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Cross entropy of the span's ends over the tokens of the window, the mean of both. Shapes: logits (b, t)."""
        start_bt, end_bt = _logits(outputs, batch["attention_mask"])
        entropy = torch.nn.functional.cross_entropy
        return (entropy(start_bt, batch["start_positions"]) + entropy(end_bt, batch["end_positions"])) / 2

    def choices(self, outputs: Outputs, batch: Batch) -> tuple[Choices, ...]:
        """The span's first and its last token, of the tokens of the window. Shapes: (b, t)."""
        start_bt, end_bt = _logits(outputs, batch["attention_mask"])
        return Choices(start_bt, batch.get("start_positions")), Choices(end_bt, batch.get("end_positions"))

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The null token's score, the best span's score, its first and its last token. Shapes: (b, 4)."""
        start_bt, end_bt = _logits(outputs, batch["attention_mask"])
        null_b1 = batch["null_position"][:, None]
        null_b = (start_bt.gather(1, null_b1) + end_bt.gather(1, null_b1)).squeeze(1)
        score_b, first_b, last_b = best_span(start_bt, end_bt, batch["context"])
        none_b = torch.isinf(score_b)
        score_b = torch.where(none_b, null_b + NO_SPAN, score_b)
        return torch.stack([null_b, score_b, first_b.float(), last_b.float()], dim=1)

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """Exact match and F1 over all questions, those with an answer and those without, and the null threshold."""
        judged, threshold = _judged_with_threshold(answers_n, examples)
        return {**squad_scores(judged, threshold), "null_threshold": threshold}

    def terms(self, answers_n: Tensor, examples: Examples) -> Tensor:
        """F1 of each question."""
        return torch.tensor(question_scores(*_judged_with_threshold(answers_n, examples), f1))


def load_question_answering(inputs: TaskInputs) -> QuestionAnswering:
    """The task's examples for one trial; limits count questions, and the questions on one text are never split.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, field, tokenizer = inputs.data, inputs.field, inputs.text_tokenizer
    if not tokenizer.is_fast:
        raise DataRefused(
            f"{field}: {type(tokenizer).__name__} does not give the position of a token in the text, which an answer's "
            "span needs; give a folder with tokenizer.json"
        )

    def read(split: str) -> QuestionSplit:
        return read_questions(inputs, split)

    splits = read_splits(inputs, read, groups_n=QuestionSplit.texts_n)
    pool = read_unlabelled(inputs, splits, read, groups_n=QuestionSplit.texts_n)

    def windows(split: QuestionSplit, rows: Tensor) -> Windows:
        return read_windows([split.questions[row] for row in rows.tolist()], tokenizer, data, field)

    train, validation, test = splits.each(windows)
    unlabelled = None if pool is None else replace(windows(pool.split, pool.rows), answered=False)
    summary = splits.summary(windows=(len(train), len(validation), len(test)))
    if pool is not None and unlabelled is not None:
        summary |= pool.summary(windows=len(unlabelled))
    return QuestionAnswering(
        train=train,
        validation=validation,
        test=test.after(validation),
        processor=tokenizer,
        unlabelled=unlabelled,
        settings=text_settings(tokenizer),
        data_summary=summary,
    )


def _logits(outputs: Outputs, mask_bt: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of first and last token, without padding: a window's loss is independent of its batch."""
    start_bt, end_bt = (
        logits.float().masked_fill(mask_bt == 0, EXCLUDED)
        for logits in (outputs["start_logits"], outputs["end_logits"])
    )
    return start_bt, end_bt


def best_span(start_bt: Tensor, end_bt: Tensor, context_bt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all spans of the text of at most `ANSWER_TOKENS`, the one whose ends have the largest sum of scores."""
    start_bt, end_bt = (logits.masked_fill(~context_bt, -torch.inf) for logits in (start_bt, end_bt))
    best_b = torch.full_like(start_bt[:, 0], -torch.inf)
    first_b, last_b = torch.zeros_like(best_b, dtype=torch.long), torch.zeros_like(best_b, dtype=torch.long)
    for more in range(min(ANSWER_TOKENS, start_bt.shape[1])):
        score_b, token_b = (start_bt[:, : start_bt.shape[1] - more] + end_bt[:, more:]).max(dim=1)
        better_b = score_b > best_b
        best_b = torch.where(better_b, score_b, best_b)
        first_b, last_b = torch.where(better_b, token_b, first_b), torch.where(better_b, token_b + more, last_b)
    return best_b, first_b, last_b


def _judged_with_threshold(answers_n: Tensor, examples: Examples) -> tuple[list[Judged], float]:
    """The judged questions of a split, and the null threshold chosen on it or on the split that it carries for that."""
    assert isinstance(examples, Windows)
    judged = _judged(answers_n, examples)
    return judged[examples.calibration :], best_threshold(judged[: examples.calibration] or judged)


def _judged(answers_n: Tensor, windows: Windows) -> list[Judged]:
    """Per question the best answer over its windows, and the lowest null score over them minus the answer's score."""
    best: dict[int, tuple[float, float, int]] = {}
    for window, (question, (null, score)) in enumerate(
        zip(windows.question_n.tolist(), answers_n[:, :2].tolist(), strict=True)
    ):
        lowest, highest, chosen = best.get(question, (null, score, window))
        best[question] = (min(lowest, null), *((score, window) if score > highest else (highest, chosen)))
    judged = []
    for number, question in enumerate(windows.questions):
        null, score, window = best[number]
        first, last = (int(token) for token in answers_n[window, 2:].tolist())
        golds = question.answers
        judged.append(Judged(windows.text(window, first, last), golds, null - score))
    return judged
