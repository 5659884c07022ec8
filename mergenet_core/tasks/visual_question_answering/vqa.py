"""Questions on images: VQA v2.0's own JSON files with their folder of images, or tables.

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.planning.data_files import annotations_beside, images_beside
from mergenet_core.spec.job import DataSpec
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.data.dataset_json import own_json, picture_table, read_json
from mergenet_core.tasks.data.pixels import distinct
from mergenet_core.tasks.data.tables import Table, hash_of, read
from mergenet_core.tasks.visual_question_answering.scores import as_judged, normalise

PEOPLE = 10
"""Who answer each question of VQA; the answer of a table that gives one stands for as many who agree."""
LEAST = 4
"""Fewer people cannot make an answer wholly right, since each is left out once."""


@dataclass(frozen=True)
class Question:
    """A question on an image, with people's answers."""

    text: str
    judged: tuple[str, ...]
    """The answers as the official script compares them."""
    usual: str
    """The answer that most of them gave, normalised."""
    kind: str
    """VQA's answer type, such as yes/no; empty where none is told."""


@dataclass(frozen=True)
class Questions:
    """One split, in the order of its file."""

    rows: tuple[Question, ...]
    pictures: Table
    """The images, a row each."""
    picture_rows: Tensor
    """Where each image stands in the table."""
    image_n: Tensor
    """The image of each question, as a place in `picture_rows`."""
    sha256: str


def read_questions(data: DataSpec, split: str, roots: Roots, field: str) -> Questions:
    """Read one split and check every row. Raises: `DataRefused`, `PathRefused`."""
    where = f"{field}.{split}"
    if own := own_json(data, split, roots, where, "questions"):
        return _from_files(*own, data, roots, where)
    table = read(data, split, TASKS["visual-question-answering"].columns(data), roots, field)
    asked = table.rows.select_columns([data.question, data.answers])
    rows = tuple(
        _checked(row[data.question], _people(row[data.answers]), "", number, where) for number, row in enumerate(asked)
    )
    picture_rows, image_n = distinct(table, data)
    return Questions(rows, table, picture_rows, image_n, table.sha256)


def _from_files(path: Path, found: Mapping[str, Any], data: DataSpec, roots: Roots, where: str) -> Questions:
    beside = annotations_beside(path, where)
    folder = images_beside(path, data, roots, where)
    try:
        told = {entry["question_id"]: entry for entry in (read_json(beside) or {})["annotations"]}
        numbers = {
            image: number for number, image in enumerate(sorted({one["image_id"] for one in found["questions"]}))
        }
        rows, image_n = [], []
        for number, entry in enumerate(found["questions"]):
            answered = told.get(entry["question_id"])
            if answered is None:
                raise DataRefused(f"{where}: question {entry['question_id']} has no answers in {beside.name}")
            answers = [answer["answer"] for answer in answered["answers"]]
            rows.append(_checked(entry["question"], answers, str(answered.get("answer_type", "")), number, where))
            image_n.append(numbers[entry["image_id"]])
        names = [_image_name(image, folder) for image in numbers]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataRefused(
            f"{where}: {path.name} or {beside.name} is not in VQA v2.0's form, questions with image_id and "
            f"question_id, annotations with answers ({error!r})"
        ) from None
    if not rows:
        raise DataRefused(f"{where}: {path.name} has no questions; give a file with at least one")
    pictures = picture_table(names, data, folder, where)
    return Questions(tuple(rows), pictures, torch.arange(len(names)), torch.tensor(image_n), hash_of([path, beside]))


def _image_name(image: int, folder: Path) -> str:
    """`COCO_train2014_000000000009.jpg` as in 2014, `000000000009.jpg` as in 2017."""
    plain = f"{image:012d}.jpg"
    prefixed = f"COCO_{folder.name}_{plain}"
    return plain if not (folder / prefixed).is_file() and (folder / plain).is_file() else prefixed


def _people(answers: Any) -> list[Any]:
    """A table's answers, normalised as VQA's own files are published: those of several people, or one for all."""
    told = [answers] if isinstance(answers, str) else answers or []
    found = [one.get("answer") if isinstance(one, Mapping) else one for one in told]
    normal = [normalise(one) if isinstance(one, str) else one for one in found]
    return normal * PEOPLE if len(normal) == 1 else normal


def _checked(text: Any, answers: list[Any], kind: str, number: int, where: str) -> Question:
    if not isinstance(text, str) or not text.strip():
        raise DataRefused(f"{where}: question {number} is {text!r}; it is a text that asks something")
    if len(answers) < LEAST or not all(isinstance(answer, str) for answer in answers):
        raise DataRefused(
            f"{where}: question {number} has answers {answers[:5]}; give one text, or those of at least {LEAST} "
            f"people ({PEOPLE} in VQA v2.0), since one is right when three others gave it"
        )
    normal = [normalise(answer) for answer in answers]
    return Question(text.strip(), as_judged(answers), max(normal, key=normal.count), kind)
