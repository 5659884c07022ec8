"""Axis maps: how the entries of a target's axis are made of a source's, and the weights that they carry across.

Shape suffixes: o output units, i input units, p kernel positions (1 for a matrix); t a target's, l a source's entries.
Equation: W_target ← M_out W_source M_inᵀ, for a convolution at each kernel position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.architectures.axes import Form, matrix_shape
from mergenet_core.pairing.result import AxisPair, WeightPair


@dataclass(frozen=True)
class AxisMap:
    """A map M of one axis: a selection of the source's entries, or a mixture of them."""

    cover_t: Tensor
    """The target's entries that are filled, ascending; the others keep what they are."""
    select_t: Tensor | None = None
    """The source's entry for each filled one."""
    mix_lt: Tensor | None = None
    """Or the weight of every source entry in each filled one."""

    def apply(self, W: Tensor, dim: int) -> Tensor:
        """Re-express one dimension of a source weight in the target's entries."""
        if self.select_t is not None:
            return W.index_select(dim, self.select_t.to(W.device))
        assert self.mix_lt is not None
        mixed: Tensor = torch.tensordot(W, self.mix_lt.to(W), dims=([dim], [0]))
        return mixed.movedim(-1, dim)

    def apply_gain(self, gain_l: Tensor) -> Tensor:
        """Re-express a gain, which acts as a diagonal matrix: the diagonal of Mᵀ diag(g) M, the nearest one."""
        if self.mix_lt is None:
            return self.apply(gain_l, 0)
        return self.mix_lt.to(gain_l).square().T @ gain_l


def anchored_map(axis: AxisPair) -> AxisMap:
    """The map of an axis that means the same in both models: its own places, or the order that names give."""
    if axis.order is not None:
        cover_t = torch.arange(axis.target_size) if axis.cover is None else torch.tensor(axis.cover)
        return AxisMap(cover_t, select_t=torch.tensor(axis.order))
    places = torch.arange(axis.shared_size)
    return AxisMap(places, select_t=places)


def selection(scores_l: Tensor, target_size: int) -> AxisMap:
    """The map that keeps the source's entries of the highest score, in their own order."""
    count = min(target_size, len(scores_l))
    kept = torch.sort(scores_l, descending=True, stable=True).indices[:count].sort().values
    return AxisMap(torch.arange(count), select_t=kept.cpu())


def as_oip(W: Tensor, form: Form) -> Tensor:
    """A weight as output × input × kernel positions; a vector has one input, an embedding's rows are its outputs."""
    if form == "embedding":
        return W.reshape(-1, W.shape[-1], 1)
    if W.ndim == 1:
        return W.reshape(-1, 1, 1)
    return W.reshape(W.shape[0], W.shape[1], -1)


@dataclass(frozen=True)
class Written:
    """Rows of a target's weight, as a matrix, that are written before training; it keeps its other rows."""

    pair: WeightPair
    rows: Tensor
    values: Tensor
    """One row a written row; what flows in from units that have no counterpart is cut, so that a written unit computes
    what the source's does."""


def written(pair: WeightPair, block_oip: Tensor, out: AxisMap, inp: AxisMap | None) -> Written:
    """A carried block as whole rows of the target's weight."""
    if inp is None:
        return Written(pair, out.cover_t, block_oip.flatten(1))
    inputs, positions = matrix_shape(pair.target_shape, pair.form)[1], block_oip.shape[2]
    filled_oip = block_oip.new_zeros((len(out.cover_t), inputs // positions, positions))
    filled_oip[:, inp.cover_t.to(block_oip.device)] = block_oip
    return Written(pair, out.cover_t, filled_oip.flatten(1))
