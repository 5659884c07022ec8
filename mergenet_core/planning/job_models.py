"""What is known of a job's two models before they are loaded, from configs, headers and tokenizers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mergenet_core.architectures.check_config import check_config
from mergenet_core.architectures.check_settings import check_settings, text_positions
from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.architectures.two_tower_config import image_config, with_defaults
from mergenet_core.errors import ModelRefused, PathRefused, SpecInvalid
from mergenet_core.model_files.knowledge_pack import Pack, read_pack
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.model_files.read_model import inspect_model, read_vocabulary
from mergenet_core.planning.checks import check_sizes
from mergenet_core.spec.job import DataSpec, JobSpec, ModelSpec
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS, TaskName
from mergenet_core.storage.paths import Roots


@dataclass(frozen=True)
class UnknownModel:
    """A model whose weights are only known once a worker has loaded or built it."""

    note: str
    """Why, for the user."""


@dataclass(frozen=True)
class _Side:
    """One of a job's two models, and what it learns."""

    field: str
    model: ModelSpec
    task: TaskName
    data: DataSpec
    trained: bool
    """Whether it must be able to learn the task; a source that is used as it is need not."""
    tokenizer_from: ModelSpec | None
    """The model whose tokenizer this one takes over when it is from scratch and names none."""


def source_info(spec: JobSpec, roots: Roots) -> ModelInfo | UnknownModel:
    """What is known of the source now. Raises: `ModelRefused`, `PathRefused`, `SpecInvalid`."""
    data, trained = spec.source.data or spec.target.data, spec.source.train is not None
    found = _info(_Side("source.model", spec.source.model, spec.source_task, data, trained, None), roots)
    if trained:
        _check_length(found, spec.source_task, data, "source.data")
    return found


def target_info(spec: JobSpec, roots: Roots) -> ModelInfo | UnknownModel:
    """What is known of the target now. Raises: `ModelRefused`, `PathRefused`, `SpecInvalid`."""
    target = spec.target
    found = _info(_Side("target.model", target.model, target.task, target.data, True, spec.source.model), roots)
    _check_length(found, target.task, target.data, "target.data")
    return found


def source_pack(spec: JobSpec, roots: Roots) -> Pack | None:
    """The header of the source's pack, if the source is one. Raises: `PathRefused`, `ModelRefused`."""
    model = spec.source.model
    return None if model.pack is None else read_pack(_saved(model, roots, "source.model"))


def with_data_labels(spec: JobSpec, source: ModelInfo, target: ModelInfo) -> tuple[ModelInfo, ModelInfo]:
    """Name the column that each head will learn its labels from, where the labels' names are read later."""
    data, task = spec.target.data, spec.target.task
    if target.labels is None:
        target = replace(target, label_column=_label_column(task, data))
    if source.labels is None and spec.source.data is not None and spec.source_task == task:
        source = replace(source, label_column=_label_column(task, spec.source.data))
    return source, target


def _label_column(task: TaskName, data: DataSpec) -> str | None:
    return data.label if TASKS[task].one_label else None


def _check_length(found: ModelInfo | UnknownModel, task: TaskName, data: DataSpec, field: str) -> None:
    """Refuse texts that are longer than the model reads. Raises: `SpecInvalid`."""
    if not TASKS[task].reads_text or isinstance(found, UnknownModel):
        return
    positions = text_positions(found.config)
    if positions is not None and data.max_length > positions:
        raise SpecInvalid(
            f"{field}.max_length is {data.max_length}, the model reads {positions} tokens; set it to that or less"
        )


def _info(side: _Side, roots: Roots) -> ModelInfo | UnknownModel:
    model, field = side.model, side.field
    if model.hub is not None:
        if not roots.hub:
            raise PathRefused(
                f"{field}.hub: this server does not open the hub; give a path below its model roots, "
                "or ask the operator for MERGENET_HUB=true"
            )
        return UnknownModel(f"{field} is on the hub: a worker checks and pairs it after the download")
    tokenizer = roots.model(model.tokenizer, f"{field}.tokenizer") if model.tokenizer else None
    if model.config is not None:
        return _from_config(side, model.config, tokenizer or _inherited_tokenizer(side, roots))
    folder = _saved(model, roots, field)
    with _name_field(f"{field}.{'path' if model.pack is None else 'pack'}"):
        found = inspect_model(folder, side.task if side.trained else None)
    return found if tokenizer is None else replace(found, vocabulary=_vocabulary(tokenizer, field))


def _from_config(side: _Side, config: JsonObject, tokenizer: Path | None) -> ModelInfo | UnknownModel:
    field, task = side.field, TASKS[side.task]
    check_config(config, side.task, where=f"{field}.config")
    check_settings(config, where=f"{field}.config")
    if task.reads_images:
        config = with_defaults(config, {}, {"image_size": side.data.image_size})
        size = image_config(config)["image_size"]
        if size != side.data.image_size:
            raise SpecInvalid(
                f"{field}.config.image_size is {size}, the data's is {side.data.image_size}; make them equal"
            )
    vocabulary = _vocabulary(tokenizer, field) if tokenizer else None
    if task.reads_text:
        if vocabulary is None:
            raise SpecInvalid(f"{field}.tokenizer: a text model from scratch needs a tokenizer; name a folder with one")
        config = with_defaults(config, {"vocab_size": vocabulary.size}, {})
    try:
        check_sizes(config, f"{field}.config")
        shapes = shapes_from_config(config, side.task)
        sizes = [size for shape in (shapes or {}).values() for size in shape]
        wrong: list[object] = [size for size in sizes if not isinstance(size, int) or size < 1]
    except (TypeError, ValueError) as error:
        wrong = [str(error)]
    if wrong:
        raise SpecInvalid(f"{field}.config: a size is not a positive whole number ({wrong[0]}); correct the config")
    if shapes is None:
        kind = config["model_type"]
        return UnknownModel(f"{field}: shapes of a {kind} from scratch are known once a worker has built it")
    return ModelInfo(config, shapes, vocabulary)


def _inherited_tokenizer(side: _Side, roots: Roots) -> Path | None:
    model = side.tokenizer_from
    if model is None:
        return None
    if model.tokenizer is not None:
        return roots.model(model.tokenizer, f"{side.field}.tokenizer")
    return _saved(model, roots, "source.model") if model.path or model.pack else None


def _saved(model: ModelSpec, roots: Roots, field: str) -> Path:
    """The folder of a saved model, or the file that is its pack."""
    if model.pack is not None:
        return roots.pack(model.pack, f"{field}.pack")
    return roots.model(model.path or "", f"{field}.path")


def _vocabulary(tokenizer: Path, field: str) -> Vocabulary | None:
    with _name_field(f"{field}.tokenizer"):
        return read_vocabulary(tokenizer)


@contextlib.contextmanager
def _name_field(field: str) -> Iterator[None]:
    """Put the document's field before the message of a refused model."""
    try:
        yield
    except ModelRefused as error:
        raise ModelRefused(f"{field}: {error.message}") from None
