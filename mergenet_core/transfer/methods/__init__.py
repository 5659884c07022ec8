"""The transfer methods, one file each; the lists that a recipe's `method` is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn

from mergenet_core.jobs.pairs import Pairing
from mergenet_core.jobs.spec import TransferSpec
from mergenet_core.transfer.methods.anchored import Anchored
from mergenet_core.transfer.methods.copy import copied
from mergenet_core.transfer.methods.lpka import Lpka
from mergenet_core.transfer.methods.project import projected

Weights = Mapping[str, Tensor]


class Learned(Protocol):
    """A method with an adapter: it writes at every transfer, and learns from what comes of it."""

    start: dict[str, Tensor]
    """Weights that it writes before the first step."""
    factors: dict[str, Tensor]
    """What it keeps of the source."""
    parameters: dict[str, nn.Parameter]
    """The adapter; names that end in `gate` are gates."""

    def write(self) -> None:
        """Replace the target's weights by what the adapter makes of them and the source."""

    def backward(self) -> None:
        """Take the loss's gradient at the written weights to the adapter and to the target's own weights."""

    def after_step(self) -> None:
        """See what the target's step made of the written weights."""


TRAINING_FREE: dict[str, Callable[[Weights, Weights, Pairing], dict[str, Tensor]]] = {
    "project": projected,
    "copy": copied,
}
"""Source weights, target weights, pairing → the target's weights as they are written once before training."""

LEARNED: dict[str, Callable[[Weights, Weights, Pairing, TransferSpec, int], Learned]] = {
    "anchored": Anchored,
    "lpka": Lpka,
}
"""Source weights, target weights, pairing, spec, seed → the method."""
