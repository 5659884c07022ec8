"""The interface of a method: what it is made from, and what the transfer cycle calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from mergenet_core.pairing.result import Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.axis_maps import RowUpdate
from mergenet_core.transfer.shards import TensorShard

Factors = tuple[Tensor, Tensor]
"""The re-encoding of a weight: B (m, r) and A (r, n)."""


@dataclass(frozen=True)
class MethodContext:
    """What a method is made from."""

    source: Mapping[str, Tensor]
    """The source's weights by pairing's names."""
    target: Mapping[str, TensorShard]
    """This process's part of the target's weights."""
    pairing: Pairing
    spec: TransferSpec
    seed: int
    """Seed of the adapter's random start."""


class LearnedMethod(Protocol):
    """A method with an adapter M: it writes the target's weights at every transfer, and learns from the result."""

    @property
    def start(self) -> Iterable[RowUpdate]:
        """What it writes before the first step; often nothing."""

    @property
    def factors(self) -> Mapping[str, Tensor]:
        """The source's factors and other state that is not trained, by name."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The adapter's parameters by name; names that end in `gate` are gates."""

    def set_source_weights(self, source: Mapping[str, Tensor]) -> None:
        """Go on with another state of the source's weights."""

    def set_source_factors(self, factors: Callable[[WeightPair], Factors]) -> None:
        """Go on with the current factors of a source that is still learning."""

    def write(self) -> None:
        """Replace the target's weights by the adapter's output."""

    def backward(self) -> None:
        """Propagate the loss's gradient at the written weights to the adapter and to the target's own weights."""

    def after_step(self) -> None:
        """Learn from the change that the target's optimizer made to the written weights."""


@dataclass(frozen=True)
class TrainingFree:
    """A method that writes the target once, before training."""

    name: str
    make: Callable[[MethodContext], Iterable[RowUpdate]]


@dataclass(frozen=True)
class Learned:
    """A method with an adapter that learns while the target trains."""

    name: str
    make: Callable[[MethodContext], LearnedMethod]
    clip_norm: float = 1.0
    """The largest norm of the adapter's gradient."""
