"""What each task reads: the columns of its tables or the files of its data set, and whether through a tokenizer."""

from __future__ import annotations

import json

from mergenet_core.spec.job import DataSpec, TaskName

IMAGE_TASKS: tuple[TaskName, ...] = ("image-classification",)
CLASSIFICATIONS: tuple[TaskName, ...] = ("text-classification", "image-classification")
"""Tasks with a label an example: a teacher's logits can be distilled."""
CROSS_MODAL: tuple[TaskName, ...] = ("visual-question-answering", "image-text-retrieval")
"""Tasks that read images and texts."""
OWN_KEYS: dict[TaskName, tuple[str, ...]] = {
    "question-answering": ('"paragraphs"',),
    "visual-question-answering": ('"questions"',),
    "image-text-retrieval": ('"annotations"', '"file_name"'),
}
"""Keys at the beginning of SQuAD's, VQA's and MSCOCO's own files."""

CIFAR_PIXELS = 3 * 32 * 32
CIFAR_RECORD = 2 + CIFAR_PIXELS
"""Bytes of an image with its coarse and its fine label in CIFAR-100's binary files."""
CIFAR_LABELS = ("coarse_label", "label")
"""Their labels, in the order of the bytes; `label` is the fine one."""


def columns(task: TaskName, data: DataSpec) -> tuple[str, ...]:
    """The columns that a table of the task must have."""
    match task:
        case "text-classification":
            return (data.text, data.label)
        case "image-classification":
            return (data.image, data.label)
        case "question-answering":
            return (data.question, data.context, data.answers)
        case "causal-language-modelling" | "masked-language-modelling":
            return (data.text,)
        case "visual-question-answering":
            return (data.image, data.question, data.answers)
        case "image-text-retrieval":
            return (data.image, data.caption)


def own_form(head: str, task: TaskName) -> bool:
    """Whether a JSON file begins as the files of the task's own data set do, and not as a table."""
    return any(key in head for key in OWN_KEYS.get(task, ()))


def named_in(head: str, wanted: tuple[str, ...], task: TaskName) -> list[str]:
    """Which of the columns the beginning of a JSON file names; all, where it is in the form of the task's data set."""
    if own_form(head, task):
        return list(wanted)
    return [name for name in wanted if json.dumps(name) in head or json.dumps(name, ensure_ascii=False) in head]


def reads_text(task: TaskName) -> bool:
    """Whether the task's model needs a tokenizer."""
    return task not in IMAGE_TASKS
