"""What a fit works on: two models, the same unlabelled inputs as each of them reads them, and sums over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.tasks.task import Batch


@dataclass(frozen=True)
class FitModel:
    """One of the two models of a fit, whole on this process."""

    module: nn.Module
    structure: ModelStructure


@dataclass(frozen=True)
class Chunk:
    """Some unlabelled inputs as keyword arguments of each model; the k-th row of both is the same input."""

    source: Batch
    target: Batch


@dataclass(frozen=True)
class FitContext:
    """A source, a target whose weights are written, and this process's unlabelled inputs.

    The processes hold the same weights and different chunks. A chunk has the same inputs however many processes there
    are, and only sums over chunks decide what is written, so that every process writes the same.
    """

    source: FitModel
    target: FitModel
    chunks: Sequence[Chunk]
    sum_: Callable[[Tensor], Tensor]
    """Sums a tensor over all processes, in place."""
    seed: int
    columns: tuple[int, ...] | None = None
    """Where the models' labels are the same: the source's logit of each of the target's labels."""


@dataclass(frozen=True)
class Boundary:
    """Where the activations of both models mean the same after the fit, and the map from the source's to the target's.

    Equation: the output of the target's module ≈ (h − mean) map + offset, with h the output of the source's module. For
    images, channels are mapped, and h is resampled to the target's height and width by adaptive average pooling.
    A column of zeros in the map means that nothing is wanted of that unit of the target.
    Shapes: mean (s), map (s, t), offset (t), for s and t channels or units of source and target.
    """

    target: str
    """The target's module, as `named_modules` has it; of several outputs the first one counts."""
    source: str
    mean_s: Tensor
    map_st: Tensor
    offset_t: Tensor


@dataclass(frozen=True)
class Solved:
    """A part of the target that is fitted."""

    name: str
    """The module that was written, such as `layer.3`."""
    error: float
    """What is left of the wanted outputs' variance, between 0 and about 1."""
    boundary: Boundary | None = None
    """The boundary that the part ends at, if it ends at one."""
