"""Axis maps: how the entries of a target's axis are made from the source's, and the weights that result.

A weight lies between an output axis and an input axis. Each axis has one map M, made where the axis is first written
and used for every weight that has the axis, so that what one layer writes is what the next one reads.

Shape suffixes: o output units, i input units, p kernel positions (1 for a matrix); t target entries, l source entries.
Equation: W_target ← M_out W_source M_inᵀ, for a convolution at each kernel position. The paper has no such maps; they
belong to the anchored projection.
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
    """The target's entries that the map fills, ascending; the others keep their values."""
    select_t: Tensor | None = None
    """For a selection: the source's entry for each filled one."""
    mix_lt: Tensor | None = None
    """For a mixture: the weight of every source entry in each filled one."""

    def apply(self, W: Tensor, dim: int) -> Tensor:
        """Map one dimension of a source weight to the filled entries of the target."""
        if self.select_t is not None:
            return W.index_select(dim, self.select_t.to(W.device))
        assert self.mix_lt is not None
        mixed: Tensor = torch.tensordot(W, self.mix_lt.to(W), dims=([dim], [0]))
        return mixed.movedim(-1, dim)

    def apply_gain(self, gain_l: Tensor) -> Tensor:
        """Map a gain, which acts as a diagonal matrix.

        Equation: the diagonal of Mᵀ diag(g) M, which is the diagonal matrix nearest to it.
        """
        if self.mix_lt is None:
            return self.apply(gain_l, 0)
        return self.mix_lt.to(gain_l).square().T @ gain_l


def anchored_map(axis: AxisPair) -> AxisMap:
    """The map of an axis with the same meaning in both models: entry by entry, or in the order of matching names."""
    if axis.order is not None:
        cover_t = torch.arange(axis.target_size) if axis.cover is None else torch.tensor(axis.cover)
        return AxisMap(cover_t, select_t=torch.tensor(axis.order))
    entries = torch.arange(axis.shared_size)
    return AxisMap(entries, select_t=entries)


def select_largest(scores_l: Tensor, target_size: int) -> AxisMap:
    """The map that keeps the source's entries with the highest scores, in the source's order."""
    count = min(target_size, len(scores_l))
    kept = torch.sort(scores_l, descending=True, stable=True).indices[:count].sort().values
    return AxisMap(torch.arange(count), select_t=kept.cpu())


def largest_entries(scores_l: Tensor, count: int) -> Tensor:
    """The indices of the highest scores, ascending."""
    kept = select_largest(scores_l, count).select_t
    assert kept is not None
    return kept


def as_oip(W: Tensor, form: Form) -> Tensor:
    """A weight as output × input × kernel positions; a vector has one input, an embedding's rows are its outputs."""
    if form == "embedding":
        return W.reshape(-1, W.shape[-1], 1)
    if W.ndim == 1:
        return W.reshape(-1, 1, 1)
    return W.reshape(W.shape[0], W.shape[1], -1)


@dataclass(frozen=True)
class RowUpdate:
    """Rows of a target's weight, seen as a matrix, that are replaced before training; the other rows stay."""

    pair: WeightPair
    rows: Tensor
    """The indices of the replaced rows."""
    values: Tensor
    """One row for each; zero at inputs without a source entry, so that a unit computes what the source's does."""


def row_update(pair: WeightPair, block_oip: Tensor, out: AxisMap, inp: AxisMap | None) -> RowUpdate:
    """The rows of the target's weight that a mapped source weight fills."""
    if inp is None:
        return RowUpdate(pair, out.cover_t, block_oip.flatten(1))
    inputs, positions = matrix_shape(pair.target_shape, pair.form)[1], block_oip.shape[2]
    filled_oip = block_oip.new_zeros((len(out.cover_t), inputs // positions, positions))
    filled_oip[:, inp.cover_t.to(block_oip.device)] = block_oip
    return RowUpdate(pair, out.cover_t, filled_oip.flatten(1))
