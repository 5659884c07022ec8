"""The transfer methods, one file each; the lists that a recipe's `method` is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from mergenet_core.jobs.pairing import Pairing
from mergenet_core.transfer.methods.anchored import Anchored
from mergenet_core.transfer.methods.project import projected

TrainingFree = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Pairing], dict[str, Tensor]]

TRAINING_FREE: dict[str, TrainingFree] = {"project": projected}
"""Source weights, target weights, pairing → the target's weights as written once before training."""

LEARNED = {"anchored": Anchored}
"""Methods with an adapter: they write at every transfer and learn from what comes of it."""
