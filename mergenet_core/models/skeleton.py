"""Models too large for one process: built as shapes only, then filled with the entries that each process holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers.initialization import no_init_weights

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.read_model import weight_files
from mergenet_core.models.loading import (
    body_prefix,
    initial_weight,
    is_for_other_labels,
    is_head,
    names_in_files,
    trained_config,
)
from mergenet_core.models.saved_tensors import SavedTensors
from mergenet_core.models.transformers_types import auto_class
from mergenet_core.spec.task_info import TaskName
from mergenet_core.transfer.shards import TensorShard
from mergenet_core.transfer.shards.tensor_shard import READ_CHUNK_ENTRIES


def load_skeleton(folder: Path, task: TaskName, labels: tuple[str, ...]) -> nn.Module:
    """A saved model's architecture with a head for `labels`; the caller's context decides what its weights are.

    Raises: `ModelRefused`.
    """
    with no_init_weights():
        return auto_class(task).from_config(trained_config(folder, task, labels), dtype=torch.float32)


def fill(
    model: nn.Module, shards: Mapping[str, TensorShard], folder: Path, labels: tuple[str, ...], *, seed: int
) -> None:
    """Load into every weight the entries that this process holds; a head for other labels is initialised anew.

    Raises: `ModelRefused` for a weight that is missing, of another size, or not finite.
    """
    saved = SavedTensors(weight_files(folder))
    prefix = body_prefix(model)
    anew = is_for_other_labels(folder, labels)
    for name, shard in shards.items():
        found = next((key for key in names_in_files(name, prefix) if key in saved.names), None)
        head = is_head(name, prefix)
        if found is None or (head and (anew or saved.shape(found) != shard.shape)):
            if found is None and not head and not _optional(name):
                raise ModelRefused(
                    f"{folder.name}: the files have no weight for {name}, so the model cannot be loaded in parts; "
                    "save it again with the transformers version that is used here"
                )
            values = initial_weight(name, shard.shape, model.config, seed).view(-1)
            shard.load_(lambda start, stop, values=values: values[start:stop])  # type: ignore[misc]
            continue
        if saved.shape(found) != shard.shape:
            raise ModelRefused(f"{folder.name}: {found} is {saved.shape(found)}, by config.json {shard.shape}")
        shard.load_(partial(saved, found))
        if not all(bool(torch.isfinite(part).all()) for part in torch.split(shard.local().flat, READ_CHUNK_ENTRIES)):
            raise ModelRefused(f"{folder.name}: weight {found} holds NaN or infinity; train or export the model again")


def _optional(name: str) -> bool:
    """Whether a weight may be missing: many who save a bare encoder leave the pooler out."""
    return "pooler." in name
