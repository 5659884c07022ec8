"""Models too large for one process: built as shapes alone, then filled by what each process holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers.initialization import no_init_weights

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.read_model import weight_files
from mergenet_core.models.loading import auto_class, body_prefix, initial, is_for_other_labels, is_head, trained_config
from mergenet_core.models.saved import SavedTensors
from mergenet_core.spec.task_info import TaskName
from mergenet_core.transfer.shards import TensorShard
from mergenet_core.transfer.shards.tensor_shard import READ_CHUNK_ENTRIES


def load_skeleton(folder: Path, task: TaskName, labels: tuple[str, ...]) -> nn.Module:
    """A saved model's architecture with a head for `labels`; its weights are whatever the caller's context makes them.

    Raises: `ModelRefused`.
    """
    with no_init_weights():
        model: nn.Module = auto_class(task).from_config(trained_config(folder, task, labels), dtype=torch.float32)
    return model


def fill(
    model: nn.Module, shards: Mapping[str, TensorShard], folder: Path, labels: tuple[str, ...], *, seed: int
) -> None:
    """Give every weight its saved entries, each process those that it holds; a head for other labels starts anew.

    Raises: `ModelRefused` for a weight that is missing, of another size, or not finite.
    """
    saved = SavedTensors(weight_files(folder))
    prefix = body_prefix(model)
    anew = is_for_other_labels(folder, labels)
    for name, shard in shards.items():
        found = next((key for key in _spellings(name, prefix) if key in saved.names), None)
        head = is_head(name, prefix)
        if found is None or (head and (anew or saved.shape(found) != shard.shape)):
            if found is None and not head and not _optional(name):
                raise ModelRefused(
                    f"{folder.name}: the files have no weight for {name}, so the model cannot be loaded in parts; "
                    "save it again with the transformers version that is used here"
                )
            values = initial(name, shard.shape, model.config, seed).view(-1)
            shard.load_(lambda start, stop, values=values: values[start:stop])  # type: ignore[misc]
            continue
        if saved.shape(found) != shard.shape:
            raise ModelRefused(f"{folder.name}: {found} is {saved.shape(found)}, by config.json {shard.shape}")
        shard.load_(partial(saved, found))
        if not all(bool(torch.isfinite(part).all()) for part in torch.split(shard.local().flat, READ_CHUNK_ENTRIES)):
            raise ModelRefused(f"{folder.name}: weight {found} holds NaN or infinity; train or export the model again")


def _spellings(name: str, prefix: str) -> list[str]:
    """The names that a file may have a weight under: as it is, as of the bare model, as of the model with a head."""
    return [name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"]


def _optional(name: str) -> bool:
    """A pooler is left out by many that save a bare encoder."""
    return "pooler." in name
