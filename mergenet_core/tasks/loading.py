"""From a task's name to its examples: the one list of tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mergenet_core.models.processors import load_both, load_image_processor, load_tokenizer
from mergenet_core.spec.job import DataSpec, TaskName
from mergenet_core.spec.task_columns import CROSS_MODAL, reads_text
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.image_classification import load_images
from mergenet_core.tasks.image_text_retrieval.task import load_captions
from mergenet_core.tasks.language_modelling.task import load_language
from mergenet_core.tasks.question_answering.task import load_questions
from mergenet_core.tasks.task import Task
from mergenet_core.tasks.text_classification import load_text
from mergenet_core.tasks.visual_question_answering.task import load_visual_questions

TEXT: dict[TaskName, Callable[..., Task]] = {
    "text-classification": load_text,
    "question-answering": load_questions,
    "causal-language-modelling": partial(load_language, masked=False),
    "masked-language-modelling": partial(load_language, masked=True),
}
BOTH: dict[TaskName, Callable[..., Task]] = {
    "visual-question-answering": load_visual_questions,
    "image-text-retrieval": load_captions,
}


def load_task(
    name: TaskName, data: DataSpec, processor: Path | None, roots: Roots, *, seed: int, field: str, channels: int = 3
) -> Task:
    """The examples of one trial, made by the tokenizer or image processor in a folder.

    Raises: `DataRefused`, `ModelRefused`, `PathRefused`.
    """
    if name in CROSS_MODAL:
        assert processor is not None, "processor_folder refuses a model that reads text without a tokenizer"
        tokenizer, pictures = load_both(processor)
        return BOTH[name](data, tokenizer, pictures, roots, seed=seed, field=field, channels=channels)
    if reads_text(name):
        assert processor is not None, "processor_folder refuses a text model without a tokenizer"
        return TEXT[name](data, load_tokenizer(processor), roots, seed=seed, field=field)
    images = load_image_processor(processor) if processor is not None else None
    return load_images(data, images, roots, seed=seed, field=field, channels=channels)
