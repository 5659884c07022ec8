"""The anchored projection `project`: the source's knowledge written into the target once, before training.

Equation: W_target ← M_out W_source M_inᵀ with one map M for each axis; a bias has M_out alone. The residual stream's
map is the top eigenvectors of the source's centred embedding; attention heads, feed-forward units, filters and hidden
units are selected by their norms. A map is made where its axis is first written, and used by every weight that reads
the axis. Nothing is learned. The paper has no such method: it is the start of `anchored`, and a strong baseline.

Shape suffixes: v vocabulary rows, D the source's stream, d the target's; o output, i input units, p kernel positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.pairing.result import AxisPair, Pairing, WeightPair
from mergenet_core.transfer.attention_heads import grouped_map, is_grouped
from mergenet_core.transfer.axis_maps import (
    AxisMap,
    RowUpdate,
    anchored_map,
    as_oip,
    largest_entries,
    row_update,
    select_largest,
)
from mergenet_core.transfer.methods.method import MethodContext


def project(context: MethodContext) -> Projection:
    """The projection of a pair of models."""
    return Projection(context.source, context.pairing)


class Projection:
    """The row updates of the projection, computed one weight at a time, so that no second model is in memory."""

    def __init__(self, source: Mapping[str, Tensor], pairing: Pairing) -> None:
        self._source, self._pairing = source, pairing
        self._maps: dict[str, AxisMap] = {}
        for pair in pairing.pairs:
            for name in (pair.out, pair.inp):
                if name is not None and name not in self._maps:
                    self._maps[name] = _make_map(name, source, pairing, self._maps)

    def set_source_weights(self, source: Mapping[str, Tensor]) -> None:
        """Go on with another state of the source's weights; the maps stay."""
        self._source = source

    def __iter__(self) -> Iterator[RowUpdate]:
        """The updates of all paired weights, in the order of the pairs."""
        return (self.row_update(pair) for pair in self._pairing.pairs)

    def row_update(self, pair: WeightPair) -> RowUpdate:
        """The replaced rows of one weight."""
        assert pair.out is not None
        out, inp = self._maps[pair.out], self._maps[pair.inp] if pair.inp is not None else None
        W = self._source[pair.source].detach().float()
        if pair.form == "gain":
            block_oip = as_oip(out.apply_gain(W), "vector")
        else:
            block_oip = out.apply(as_oip(W, pair.form), 0)
            if inp is not None:
                block_oip = inp.apply(block_oip, 1)
        if pair.role.startswith("attention.query"):
            block_oip = block_oip * _score_scale(self._pairing.axes[pair.out])
        return row_update(pair, block_oip, out, inp)

    def filled(self, axis: str) -> Tensor:
        """The entries of a target's axis that have a source entry, ascending."""
        return self._maps[axis].cover_t

    def project_factors(self, pair: WeightPair, B_or: Tensor, A_rn: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of the projected weight: M_out B and A M_inᵀ, zero where the target's entry has no source entry.

        Shapes: (source outputs, r), (r, source inputs) → (target outputs, r), (r, target inputs).
        """
        assert pair.out is not None
        out, inp = self._maps[pair.out], self._maps[pair.inp] if pair.inp is not None else None
        rows, columns = matrix_shape(pair.target_shape, pair.form)
        B_tr = B_or.new_zeros((rows, B_or.shape[1]))
        B_tr[out.cover_t.to(B_or.device)] = out.apply(B_or, 0)
        if pair.role.startswith("attention.query"):
            B_tr = B_tr * _score_scale(self._pairing.axes[pair.out])
        if inp is None:
            return B_tr, A_rn
        positions = 1 if pair.form == "embedding" else math.prod(pair.target_shape[2:])
        A_rip = A_rn.view(len(A_rn), -1, positions)
        A_rtp = A_rn.new_zeros((len(A_rn), columns // positions, positions))
        A_rtp[:, inp.cover_t.to(A_rn.device)] = inp.apply(A_rip, 1)
        return B_tr, A_rtp.flatten(1)

    def weight(self, pair: WeightPair) -> Tensor:
        """One projected weight in the target's shape; zero where an entry has no source entry."""
        update = self.row_update(pair)
        W = torch.zeros(pair.target_shape, dtype=update.values.dtype, device=update.values.device)
        W.view(matrix_shape(pair.target_shape, pair.form))[update.rows.to(W.device)] = update.values
        return W


def _make_map(name: str, source: Mapping[str, Tensor], pairing: Pairing, maps: Mapping[str, AxisMap]) -> AxisMap:
    axis = pairing.axes[name]
    if axis.anchored:
        return anchored_map(axis)
    if axis.basis is not None:
        W = source[axis.basis]
        return stream_map(W if axis.basis_form == "embedding" else W.flatten(1).T, axis.target_size)
    if axis.heads is not None:
        return (grouped_map if is_grouped(name, pairing) else _head_map)(name, source, pairing)
    return select_largest(unit_scores(name, source, pairing, maps), axis.target_size)


def stream_map(E_vD: Tensor, size: int) -> AxisMap:
    """The map of the residual stream: the top eigenvectors of the centred embedding's Gram matrix.

    Shapes: E (v, D); the map is D × size.
    Equation: M = the eigenvectors of (E − Ē)ᵀ(E − Ē) with the largest eigenvalues, the entry of largest magnitude in
    each positive. In a target at least as wide as the source the stream keeps its entries.
    """
    width = E_vD.shape[1]
    if size >= width:
        entries = torch.arange(width)
        return AxisMap(entries, select_t=entries)
    centred_vD = E_vD.detach().double()
    centred_vD = centred_vD - centred_vD.mean(0)
    vectors_Dd = torch.linalg.eigh(centred_vD.T @ centred_vD).eigenvectors.flip(1)[:, :size]
    largest_d = vectors_Dd.abs().argmax(0)
    signs_d = vectors_Dd[largest_d, torch.arange(size, device=vectors_Dd.device)].sign()
    return AxisMap(torch.arange(size), mix_lt=(vectors_Dd * signs_d).float())


def unit_scores(name: str, source: Mapping[str, Tensor], pairing: Pairing, maps: Mapping[str, AxisMap]) -> Tensor:
    """The importance of each unit of a source's axis, over the weights that write and read it.

    Shapes: (units of the axis). Equation: ‖in‖·|γ|/σ·‖out‖ with the batch norm's gain γ and deviation σ.
    """
    scores_o: Tensor | None = None
    for pair in pairing.pairs:
        W_oip = as_oip(source[pair.source].detach().float(), pair.form)
        if pair.out == name and pair.inp is not None:
            factor_o = (maps[pair.inp].apply(W_oip, 1) if pair.inp in maps else W_oip).flatten(1).norm(dim=1)
        elif pair.inp == name:
            factor_o = W_oip.transpose(0, 1).flatten(1).norm(dim=1)
        elif pair.out == name and pair.role.endswith("norm.weight"):
            factor_o = W_oip.flatten().abs()
        elif pair.out == name and pair.role.endswith("norm.variance"):
            factor_o = (W_oip.flatten() + 1e-5).rsqrt()
        else:
            continue
        scores_o = factor_o if scores_o is None else scores_o * factor_o
    assert scores_o is not None
    return scores_o


def _head_map(name: str, source: Mapping[str, Tensor], pairing: Pairing) -> AxisMap:
    """The heads with the largest ‖W_q‖·‖W_k‖; a wider target head holds several, a narrower one the strongest rows."""
    layer = name.rpartition(".")[2]
    axis = pairing.axes[name]
    assert axis.heads is not None
    count_l, count_t = axis.heads
    width_l, width_t = axis.source_size // count_l, axis.target_size // count_t
    packed = max(1, width_t // width_l)
    query_h, key_h = (
        _row_norms(f"attention.{role}", f"queries.{layer}", source, pairing).view(count_l, -1)
        for role in ("query", "key")
    )
    scores_h = query_h.square().sum(1) * key_h.square().sum(1)
    kept_h = largest_entries(scores_h, count_t * packed)
    width = min(width_l, width_t)
    if name.startswith("queries."):
        energy = query_h * key_h
    else:
        value = _row_norms("attention.value", name, source, pairing)
        energy = (value * _column_norms("attention.out", name, source, pairing)).view(count_l, -1)
    cover, select = [], []
    for index, head in enumerate(kept_h.tolist()):
        rows = largest_entries(energy[head], width)
        select.append(head * width_l + rows)
        cover.append(index // packed * width_t + index % packed * width_l + torch.arange(width))
    return AxisMap(torch.cat(cover), select_t=torch.cat(select))


def _row_norms(role: str, axis: str, source: Mapping[str, Tensor], pairing: Pairing) -> Tensor:
    pair = next(pair for pair in pairing.pairs if pair.role == f"{role}.weight" and pair.out == axis)
    norms: Tensor = torch.linalg.vector_norm(source[pair.source].detach().float(), dim=1)
    return norms


def _column_norms(role: str, axis: str, source: Mapping[str, Tensor], pairing: Pairing) -> Tensor:
    pair = next(pair for pair in pairing.pairs if pair.role == f"{role}.weight" and pair.inp == axis)
    norms: Tensor = torch.linalg.vector_norm(source[pair.source].detach().float(), dim=0)
    return norms


def _score_scale(axis: AxisPair) -> float:
    """The factor on queries that keeps q·k/√width as in the source where the target's heads have another width."""
    assert axis.heads is not None
    width_l, width_t = axis.source_size // axis.heads[0], axis.target_size // axis.heads[1]
    return float((width_t / width_l) ** 0.5)
