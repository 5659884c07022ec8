"""Questions on images: VQA v2.0's own JSON files with their folder of images, or tables.

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, tensor

from mergenet_core.errors import DataRefused
from mergenet_core.planning.data_files import find_annotations, find_images
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.data.dataset_json import entries, integer, published_form, read_dataset_json, read_json
from mergenet_core.tasks.data.images import ImageColumn, distinct_images, images_in_folder
from mergenet_core.tasks.data.tables import hash_of, read_table
from mergenet_core.tasks.task import TaskInputs
from mergenet_core.tasks.visual_question_answering.scores import PeoplesAnswers, normalise

PEOPLE = 10
"""People who answer each question of VQA; a table's only answer counts as given by so many."""
LEAST = 4
"""With fewer people no answer can score 1, since each of them is left out once."""


@dataclass(frozen=True)
class Question:
    """A question on an image, with people's answers."""

    text: str
    answers: PeoplesAnswers
    answer_type: str
    """VQA's answer type, such as yes/no; empty where none is given."""


@dataclass(frozen=True)
class QuestionSplit:
    """One split, in the order of its file."""

    questions: tuple[Question, ...]
    images: ImageColumn
    image_n: Tensor
    """The index in `images` of each question's image."""
    sha256: str

    def __len__(self) -> int:
        """How many questions there are."""
        return len(self.questions)


def read_questions(inputs: TaskInputs, split: str) -> QuestionSplit:
    """Read one split and check every row; answers of unlabelled questions are not read.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, where, answered = inputs.data, f"{inputs.field}.{split}", split != "unlabelled"
    published = read_dataset_json(inputs, split, "questions")
    if published is not None:
        return _from_files(*published, inputs, where, answered)
    info = TASKS["visual-question-answering"]
    table = read_table(inputs, split, info.columns(data) if answered else info.input_columns(data))
    columns = [data.question, data.answers] if answered else [data.question]
    questions = tuple(
        _checked(row[data.question], _answers_in_cell(row[data.answers]) if answered else None, "", number, where)
        for number, row in enumerate(table.rows.select_columns(columns))
    )
    images, image_n = distinct_images(table, data.image)
    return QuestionSplit(questions, images, image_n, table.sha256)


def _from_files(path: Path, content: JsonObject, inputs: TaskInputs, where: str, answered: bool) -> QuestionSplit:
    annotations = find_annotations(path, where) if answered else None
    folder = find_images(path, inputs.data, inputs.roots, where)
    form = "VQA v2.0's form, questions with image_id and question_id, annotations with answers"
    questions, images = [], []
    with published_form(f"{where}: {path.name}" + (f" or {annotations.name}" if annotations else ""), form):
        annotated = entries(read_json(annotations), "annotations") if annotations else ()
        by_question = {entry["question_id"]: entry for entry in annotated}
        for number, asked in enumerate(entries(content, "questions")):
            answers, answer_type = None, ""
            if annotations is not None:
                entry = by_question.get(asked["question_id"])
                if entry is None:
                    raise DataRefused(f"{where}: question {asked['question_id']} has no answers in {annotations.name}")
                answers = [answer["answer"] for answer in entries(entry, "answers")]
                answer_type = str(entry.get("answer_type", ""))
            questions.append(_checked(asked["question"], answers, answer_type, number, where))
            images.append(integer(asked, "image_id"))
    if not questions:
        raise DataRefused(f"{where}: {path.name} has no questions; give a file with at least one")
    indices = {image: index for index, image in enumerate(sorted(set(images)))}
    column = images_in_folder([_image_name(image, folder) for image in indices], inputs.data.image, folder, where)
    image_n = tensor([indices[image] for image in images])
    return QuestionSplit(tuple(questions), column, image_n, hash_of([path, *([annotations] if annotations else [])]))


def _image_name(image: int, folder: Path) -> str:
    """`COCO_train2014_000000000009.jpg` as in 2014, `000000000009.jpg` as in 2017."""
    plain = f"{image:012d}.jpg"
    prefixed = f"COCO_{folder.name}_{plain}"
    return plain if not (folder / prefixed).is_file() and (folder / plain).is_file() else prefixed


def _answers_in_cell(cell: object) -> list[object]:
    """The answers in a row of a table; one answer counts as that of all people.

    It is normalised, since nobody shows which of its spellings are meant to be equal.
    """
    given = [cell] if isinstance(cell, str) else list(cell) if isinstance(cell, list) else []
    found = [one.get("answer") if isinstance(one, Mapping) else one for one in given]
    if len(found) == 1 and isinstance(found[0], str):
        return [normalise(found[0])] * PEOPLE
    return found


def _checked(text: object, answers: Sequence[object] | None, answer_type: str, number: int, where: str) -> Question:
    """A question that is a text, with enough answers; None for one whose answers are not read."""
    if not isinstance(text, str) or not text.strip():
        raise DataRefused(f"{where}: question {number} is {text!r}; it must be a text that is not empty")
    if answers is None:
        return Question(text.strip(), PeoplesAnswers.of(()), answer_type)
    texts = [answer for answer in answers if isinstance(answer, str)]
    if len(answers) < LEAST or len(texts) < len(answers):
        raise DataRefused(
            f"{where}: question {number} has answers {list(answers[:5])}; give one text, or those of at least {LEAST} "
            f"people ({PEOPLE} in VQA v2.0), since an answer is right when three others gave it"
        )
    return Question(text.strip(), PeoplesAnswers.of(texts), answer_type)
