"""From a task's name to its examples: the processors are loaded here, the rest is the task's own loader."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from mergenet_core.models.processors import has_image_processor, load_image_processor, load_tokenizer
from mergenet_core.spec.data import DataSpec, HeldOut
from mergenet_core.spec.task_info import TASKS, TaskName
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.task import Task, TaskInputs


def load_task(
    name: TaskName,
    data: DataSpec,
    processor: Path | None,
    roots: Roots,
    *,
    seed: int,
    field: str,
    channels: int = 3,
    held_out: HeldOut | None = None,
) -> Task:
    """The examples of one trial, made by the tokenizer or image processor in a folder.

    Raises: `DataRefused`, `ModelRefused`, `PathRefused`.
    """
    info = TASKS[name]
    tokenizer = images = None
    if info.reads_text:
        assert processor is not None, "processor_folder refuses a model that reads text without a tokenizer"
        tokenizer = load_tokenizer(processor)
    if info.reads_images and processor is not None and has_image_processor(processor):
        images = load_image_processor(processor)
    return task_loader(name)(
        TaskInputs(
            data,
            roots,
            seed=seed,
            field=field,
            held_out=held_out,
            tokenizer=tokenizer,
            images=images,
            channels=channels,
        )
    )


def task_loader(name: TaskName) -> Callable[[TaskInputs], Task]:
    """The function that reads a task's examples; its module is imported by the first call."""
    module, function = TASKS[name].loader.split(":")
    loader: Callable[[TaskInputs], Task] = getattr(import_module(f"mergenet_core.tasks.{module}"), function)
    return loader
