"""The transfer methods, one file each; the lists that a recipe's `method` is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor, nn

from mergenet_core.pairing.result import Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.maps import Written
from mergenet_core.transfer.methods.anchored import Anchored
from mergenet_core.transfer.methods.copy import copied
from mergenet_core.transfer.methods.lpka import Lpka
from mergenet_core.transfer.methods.lpka_raw import CLIP_NORM as RAW_CLIP_NORM
from mergenet_core.transfer.methods.lpka_raw import LpkaRaw
from mergenet_core.transfer.methods.project import Projection
from mergenet_core.transfer.shards import Shard

Weights = Mapping[str, Tensor]
Factors = tuple[Tensor, Tensor]


class Learned(Protocol):
    """A method with an adapter: it writes at every transfer, and learns from what comes of it."""

    @property
    def start(self) -> Iterable[Written] | None:
        """What it writes before the first step."""

    factors: dict[str, Tensor]
    """What it keeps of the source."""
    parameters: dict[str, nn.Parameter]
    """The adapter; names that end in `gate` are gates."""

    def retake(self, source: Mapping[str, Tensor]) -> None:
        """Take another state of the source's weights."""

    def refresh(self, factors: Callable[[WeightPair], Factors]) -> None:
        """Take the factors of a source that has learned since."""

    def write(self) -> None:
        """Replace the target's weights by what the adapter makes of them and the source."""

    def backward(self) -> None:
        """Take the loss's gradient at the written weights to the adapter and to the target's own weights."""

    def after_step(self) -> None:
        """See what the target's step made of the written weights."""


TRAINING_FREE: dict[str, Callable[[Weights, Pairing], Iterable[Written]]] = {
    "project": Projection,
    "copy": copied,
}
"""Source weights, pairing → what is written into the target once, before training."""

LEARNED: dict[str, Callable[[Weights, Mapping[str, Shard], Pairing, TransferSpec, int], Learned]] = {
    "anchored": Anchored,
    "lpka": Lpka,
    "lpka-raw": LpkaRaw,
}
"""Source weights, target weights, pairing, spec, seed → the method."""

CLIP_NORMS = {"lpka-raw": RAW_CLIP_NORM}
"""The largest norm of an adapter's gradient, where it is not the usual one."""
