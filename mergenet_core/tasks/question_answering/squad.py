"""Questions on texts: SQuAD's own JSON file, or tables with its columns, as they are on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.spec.job import DataSpec
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.paths import Roots
from mergenet_core.storage.published_folder import sha256
from mergenet_core.tasks.data.dataset_json import own_json
from mergenet_core.tasks.data.tables import read


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
class Questions:
    """One split, in the order of its file."""

    rows: tuple[Question, ...]
    field: str
    """Where the job document names it."""
    sha256: str

    def texts_n(self) -> Tensor:
        """The number of each question's text: questions on the same text have the same one."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(row.context, len(numbers)) for row in self.rows])


def read_questions(data: DataSpec, split: str, roots: Roots, field: str) -> Questions:
    """Read one split and check every row. Raises: `DataRefused`, `PathRefused`."""
    where = f"{field}.{split}"
    if own := own_json(data, split, roots, where, "data"):
        path, file = own
        if not isinstance(file["data"], list):
            raise DataRefused(f"{where}: in {path.name} `data` is not a list of articles, as in SQuAD's files")
        found, checksum = _from_articles(file["data"], where), sha256(path)
    else:
        table = read(data, split, TASKS["question-answering"].columns(data), roots, field)
        found, checksum = (
            _from_table(table.rows.select_columns([data.question, data.context, data.answers]), data),
            (table.sha256),
        )
    rows = tuple(_checked(row, number, where) for number, row in enumerate(found))
    if not rows:
        raise DataRefused(f"{where}: {getattr(data, split)} has no questions; give a file with at least one")
    return Questions(rows, where, checksum)


Row = tuple[Any, Any, Any]
"""Question, text and answers as they were read."""


def _from_articles(articles: Iterable[Any], where: str) -> Iterator[Row]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    yield asked["question"], paragraph["context"], asked.get("answers", [])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataRefused(
            f"{where}: the file is not in SQuAD's form, data → paragraphs → context and qas ({error!r})"
        ) from None


def _from_table(rows: Any, data: DataSpec) -> Iterator[Row]:
    for row in rows:
        yield row[data.question], row[data.context], row[data.answers]


def _checked(row: Row, number: int, where: str) -> Question:
    question, context, answers = row
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            raise DataRefused(f"{where}: question {number} has {name} {value!r}; it is a text that says something")
    texts, starts = _answers(answers, number, where)
    for text, start in zip(texts, starts, strict=True):
        if text and context[start : start + len(text)] != text:
            raise DataRefused(
                f"{where}: question {number}: the text at character {start} is not the answer {text[:50]!r}; "
                "answer_start counts characters from the beginning of the context"
            )
    return Question(question.strip(), context, texts, starts)


def _answers(answers: Any, number: int, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """From a list of answers, as in SQuAD's file, or from their columns, as in its tables."""
    try:
        if isinstance(answers, Mapping):
            texts, starts = list(answers["text"]), list(answers["answer_start"])
        else:
            texts, starts = ([one[key] for one in answers or []] for key in ("text", "answer_start"))
    except (KeyError, TypeError):
        texts, starts = [None], []
    right = all(isinstance(text, str) for text in texts) and all(type(start) is int and start >= 0 for start in starts)
    if not right or len(texts) != len(starts):
        raise DataRefused(
            f"{where}: question {number}: answers are not text and answer_start of each, as in SQuAD; an unanswerable "
            "question has empty lists"
        )
    return tuple(texts), tuple(starts)
