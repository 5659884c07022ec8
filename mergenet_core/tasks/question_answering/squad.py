"""Questions on texts: SQuAD's own JSON file, or tables with its columns, as they are on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.published_folder import sha256
from mergenet_core.tasks.data.dataset_json import entries, published_form, read_dataset_json
from mergenet_core.tasks.data.tables import read_table
from mergenet_core.tasks.task import TaskInputs


@dataclass(frozen=True)
class Question:
    """A question on a text, with the answers that people marked in it."""

    question: str
    context: str
    answers: tuple[str, ...]
    """Empty where the text does not answer the question."""
    starts: tuple[int, ...]
    """Where each answer begins, in characters."""


@dataclass(frozen=True)
class QuestionSplit:
    """One split, in the order of its file."""

    questions: tuple[Question, ...]
    sha256: str

    def __len__(self) -> int:
        """How many questions there are."""
        return len(self.questions)

    def texts_n(self) -> Tensor:
        """A number for each question's text: questions on the same text have the same one."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(one.context, len(numbers)) for one in self.questions])


class Row(NamedTuple):
    """A question as it was read, still to be checked."""

    question: object
    context: object
    answers: object = None


def read_questions(inputs: TaskInputs, split: str) -> QuestionSplit:
    """Read one split and check every row; a table of unlabelled questions needs no answers.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, where = inputs.data, f"{inputs.field}.{split}"
    published = read_dataset_json(inputs, split, "data")
    if published is not None:
        path, content = published
        if not isinstance(content["data"], list):
            raise DataRefused(f"{where}: in {path.name} `data` is not a list of articles, as in SQuAD's files")
        form = "SQuAD's form, data → paragraphs → context and qas"
        with published_form(f"{where}: {path.name}", form):
            rows, checksum = list(_squad_rows(content)), sha256(path)
    else:
        info = TASKS["question-answering"]
        columns = info.input_columns(data) if split == "unlabelled" else info.columns(data)
        table = read_table(inputs, split, columns)
        rows = [Row(*(row[name] for name in columns)) for row in table.rows.select_columns(list(columns))]
        checksum = table.sha256
    questions = tuple(_checked(row, number, where) for number, row in enumerate(rows))
    if not questions:
        raise DataRefused(f"{where}: {getattr(data, split)} has no questions; give a file with at least one")
    return QuestionSplit(questions, checksum)


def _squad_rows(content: JsonObject) -> Iterator[Row]:
    for article in entries(content, "data"):
        for paragraph in entries(article, "paragraphs"):
            for question in entries(paragraph, "qas"):
                yield Row(question["question"], paragraph["context"], question.get("answers", []))


def _checked(row: Row, number: int, where: str) -> Question:
    question = _text(row.question, "question", number, where)
    context = _text(row.context, "context", number, where)
    texts, starts = _answers(row.answers, number, where)
    for text, start in zip(texts, starts, strict=True):
        if text and context[start : start + len(text)] != text:
            raise DataRefused(
                f"{where}: question {number}: the text at character {start} is not the answer {text[:50]!r}; "
                "answer_start counts characters from the beginning of the context"
            )
    return Question(question.strip(), context, texts, starts)


def _text(value: object, name: str, number: int, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataRefused(f"{where}: question {number} has {name} {value!r}; it must be a text that is not empty")
    return value


def _answers(answers: object, number: int, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and starts of a list of answers, as in SQuAD's file, or of their columns, as in its tables."""
    texts: object = None
    starts: object = None
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
    elif answers is None:
        texts, starts = [], []
    elif isinstance(answers, list):
        found = [answer if isinstance(answer, Mapping) else {} for answer in answers]
        texts, starts = [one.get("text") for one in found], [one.get("answer_start") for one in found]
    if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
        pairs = [
            (text, start)
            for text, start in zip(texts, starts, strict=True)
            if isinstance(text, str) and type(start) is int and start >= 0
        ]
        if len(pairs) == len(texts):
            return tuple(text for text, _ in pairs), tuple(start for _, start in pairs)
    raise DataRefused(
        f"{where}: question {number}: answers are not text and answer_start of each, as in SQuAD; an unanswerable "
        "question has empty lists"
    )
