"""A linear probe: logistic regression on a frozen model's features of the same labelled examples.

Legend: b examples of a batch, n examples of a split, t tokens or image patches, d features.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mergenet_core.baselines.logistic import Floats, accuracy_on_test, labelled, standardise
from mergenet_core.models.loading import body_prefix
from mergenet_core.tasks.image_classification import PixelExamples
from mergenet_core.tasks.task import Batch, Examples, Task
from mergenet_core.tasks.text_classification import TokenExamples


@torch.no_grad()
def linear_probe(model: nn.Module, task: Task, device: torch.device, kept: Path | None = None) -> float:
    """Test accuracy of a logistic regression on a model's features; the model itself is not trained.

    The features of the test split are the same at every seed of a job: they are read from `kept`, or written there.
    """
    splits = [
        split for split in (task.train, task.validation, task.test) if isinstance(split, (TokenExamples, PixelExamples))
    ]
    model = model.to(device).eval()
    features = [_features(model, task, split, device) for split in splits[:-1]]
    features = standardise([*features, _kept_features(model, task, splits[-1], device, kept)])
    return accuracy_on_test(labelled(features, splits), len(task.labels))


def _kept_features(model: nn.Module, task: Task, examples: Examples, device: torch.device, kept: Path | None) -> Floats:
    """The features of a split, from a file if it has them."""
    if kept is not None and kept.is_file():
        found: Floats = np.load(kept, allow_pickle=False)
        if len(found) == len(examples):
            return found
    found = _features(model, task, examples, device)
    if kept is not None:  # renamed when it is whole: another seed's trial may write it at the same time
        draft = kept.with_name(f".{kept.stem}-{os.getpid()}.npy")
        np.save(draft, found)
        draft.rename(kept)
    return found


def _features(model: nn.Module, task: Task, examples: Examples, device: torch.device) -> Floats:
    """The features of a split, in its order. Shapes: (n, d)."""
    order_n, found = examples.evaluation_order(), []
    for index_b in torch.split(order_n, task.evaluation_batch):
        batch = {name: value.to(device) for name, value in examples.batch(index_b).items()}
        inputs = {name: value for name, value in batch.items() if name not in task.targets}
        found.append(pooled(model, inputs).float().cpu())
    X_nd: Floats = torch.cat(found)[torch.argsort(order_n)].numpy()
    return X_nd


def pooled(model: nn.Module, inputs: Batch) -> Tensor:
    """The mean of the last hidden state over tokens, patches or pixels; of a built-in model, its head's input.

    Padding is left out. Shapes: (b, d).
    """
    prefix = body_prefix(model)
    if not prefix:
        return _head_input(model, inputs)
    hidden: Tensor = model.get_submodule(prefix)(**inputs).last_hidden_state
    if hidden.ndim == 4:
        return hidden.mean(dim=(2, 3))
    mask_bt = inputs.get("attention_mask")
    if mask_bt is None:
        return hidden.mean(dim=1)
    return (hidden * mask_bt[:, :, None]).sum(dim=1) / mask_bt.sum(dim=1, keepdim=True).clamp(min=1)


def _head_input(model: nn.Module, inputs: Batch) -> Tensor:
    kept: list[Tensor] = []
    hook = model.get_submodule("head").register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    model(**inputs)
    hook.remove()
    return kept[0]
