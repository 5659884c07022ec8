"""Questions as a model reads them: a question followed by its text, a long text in windows that overlap.

Legend: n windows, b windows of a batch, t tokens, k tokens of all windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import Tokenizer
from mergenet_core.spec.data import DataSpec
from mergenet_core.tasks.data.ragged_tensor import Ragged, ragged
from mergenet_core.tasks.data.tokens import input_names, padding
from mergenet_core.tasks.question_answering.squad import Question

QUESTION_TOKENS = 64
"""Longer questions are cut, as in BERT; a question also never takes more than a third of a window."""
READ_QUESTIONS = 1000
"""Questions that are held in the tokenizer's own form at a time."""
SPAN = frozenset({"start_positions", "end_positions"})
"""Positions of the answer's first and last token in the window, or of the null token where the answer is not in it."""
TARGETS = SPAN | {"context", "null_position"}


@dataclass(frozen=True)
class Windows:
    """A split of questions in windows."""

    tokens: Ragged
    """The tokenizer's columns, and `context`: whether a token belongs to the text."""
    offsets_k2: Tensor
    """Where each token starts and ends in the text, in characters."""
    positions_n3: Tensor
    """Per window: the positions of the answer's first and last token, and of the null token, which means no answer."""
    question_n: Tensor
    """The index in `questions` of each window's question."""
    questions: tuple[Question, ...]
    padding: dict[str, int]
    calibration: int = 0
    """The threshold is chosen on this many questions at the front and used on the others; 0: chosen and used on all."""
    answered: bool = True
    """Whether batches have the answers' positions."""

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.tokens)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids, mask and answers. Shapes: (b, longest), positions (b)."""
        start_b, end_b, null_b = self.positions_n3[index_b].unbind(1)
        batch = {**self.tokens.padded(index_b, self.padding), "null_position": null_b}
        return {**batch, "start_positions": start_b, "end_positions": end_b} if self.answered else batch

    def evaluation_order(self) -> Tensor:
        """Sorted by length."""
        return torch.argsort(self.tokens.lengths_n, stable=True)

    def text(self, window: int, start: int, end: int) -> str:
        """The text from one token of a window to another, as it is written."""
        context, first = self.questions[int(self.question_n[window])].context, int(self.tokens.bounds[window])
        return context[int(self.offsets_k2[first + start, 0]) : int(self.offsets_k2[first + end, 1])]

    def after(self, calibration: Windows) -> Windows:
        """The same questions, measured with the threshold that is chosen on the given ones with the same weights."""
        both = (calibration, self)
        columns = {name: torch.cat([one.tokens.columns_k[name] for one in both]) for name in self.tokens.columns_k}
        bounds = torch.cat([calibration.tokens.bounds[:-1], self.tokens.bounds + calibration.tokens.bounds[-1]])
        return Windows(
            tokens=Ragged(columns, bounds),
            offsets_k2=torch.cat([one.offsets_k2 for one in both]),
            positions_n3=torch.cat([one.positions_n3 for one in both]),
            question_n=torch.cat([calibration.question_n, self.question_n + len(calibration.questions)]),
            questions=calibration.questions + self.questions,
            padding=self.padding,
            calibration=len(calibration.questions),
        )


def read_windows(questions: Sequence[Question], tokenizer: Tokenizer, data: DataSpec, field: str) -> Windows:
    """Tokenise questions and their texts. Raises: `DataRefused` where a window is too short for both."""
    longest = min(QUESTION_TOKENS, data.max_length // 3)
    stride = data.max_length // 3 if data.stride is None else data.stride
    room = data.max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
    if longest < 1 or room <= stride:
        raise DataRefused(
            f"{field}: a window of max_length {data.max_length} has room for {max(room, 0)} tokens of text, of which "
            f"the next repeats stride {stride}; raise max_length, or lower stride"
        )
    found = list(_windows(questions, tokenizer, data.max_length, stride, longest))
    return Windows(
        tokens=ragged(window.columns for window in found),
        offsets_k2=torch.cat([window.offsets_t2 for window in found]),
        positions_n3=torch.tensor([window.positions for window in found]),
        question_n=torch.tensor([window.question for window in found]),
        questions=tuple(questions),
        padding=padding(tokenizer),
    )


class _Window(NamedTuple):
    columns: dict[str, Tensor]
    offsets_t2: Tensor
    positions: tuple[int, int, int]
    question: int


def _windows(
    questions: Sequence[Question], tokenizer: Tokenizer, max_length: int, stride: int, longest: int
) -> Iterator[_Window]:
    for first in range(0, len(questions), READ_QUESTIONS):
        batch = questions[first : first + READ_QUESTIONS]
        encoded = tokenizer(
            _cut([one.question for one in batch], tokenizer, longest),
            [one.context for one in batch],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        given = input_names(tokenizer, encoded)
        for window, sample in enumerate(encoded["overflow_to_sample_mapping"]):
            context_t = torch.tensor([side == 1 for side in encoded.sequence_ids(window)])
            offsets_t2 = torch.tensor(encoded["offset_mapping"][window], dtype=torch.int32)
            columns = {name: torch.tensor(encoded[name][window], dtype=torch.int32) for name in given}
            null = _null(encoded["input_ids"][window], tokenizer)
            start, end = _span(batch[sample], offsets_t2, context_t) or (null, null)
            yield _Window({**columns, "context": context_t}, offsets_t2, (start, end, null), first + sample)


def _cut(questions: list[str], tokenizer: Tokenizer, longest: int) -> list[str]:
    offsets = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        question[: tokens[longest - 1][1]] if len(tokens) > longest else question
        for question, tokens in zip(questions, offsets, strict=True)
    ]


def _null(ids: list[int], tokenizer: Tokenizer) -> int:
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0


def _span(question: Question, offsets_t2: Tensor, context_t: Tensor) -> tuple[int, int] | None:
    """The first and last token of the first answer; None where a part of it is outside the window."""
    tokens = context_t.nonzero().flatten()
    if not question.answers or len(tokens) == 0:
        return None
    start = question.starts[0]
    end = start + len(question.answers[0])
    starts, ends = offsets_t2[tokens].unbind(1)
    if start < int(starts[0]) or end > int(ends[-1]) or end == start:
        return None
    first, last = int((ends <= start).sum()), int((starts < end).sum()) - 1
    return (int(tokens[first]), int(tokens[last])) if first <= last else None
