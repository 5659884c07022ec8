"""What each task reads: the columns of its tables, and whether through a tokenizer."""

from __future__ import annotations

import json

from mergenet_core.jobs.spec import DataSpec, TaskName

IMAGE_TASKS: tuple[TaskName, ...] = ("image-classification",)
CLASSIFICATIONS: tuple[TaskName, ...] = ("text-classification", "image-classification")
"""Tasks with a label an example: a teacher's logits can be distilled."""


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


def named_in(head: str, wanted: tuple[str, ...]) -> list[str]:
    """Which of the columns the beginning of a JSON file names; all, where it is that of SQuAD's own form."""
    if '"paragraphs"' in head:
        return list(wanted)
    return [name for name in wanted if json.dumps(name) in head or json.dumps(name, ensure_ascii=False) in head]


def reads_text(task: TaskName) -> bool:
    """Whether the task's model needs a tokenizer."""
    return task not in IMAGE_TASKS
