"""The attention of a target's layer: queries, keys and values after chosen source heads, then the output projection.

Legend: i inputs, v and w a head's width in source and target, D the source's stream, d the target's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergenet_core.fitting.gram import Affine
from mergenet_core.fitting.transformer.heads import SourceHead, narrower_scores, narrower_values
from mergenet_core.fitting.transformer.source_visit import ROLES, Seen, Taken
from mergenet_core.fitting.transformer.state import TransformerFit
from mergenet_core.transfer.attention_heads import rotary_rows

_RIDGE = 1e-3


def solve_attention(fit: TransformerFit, layer: int, taken: Taken, seen: Seen) -> float:
    """Write the attention of one layer and the norm behind it; what is left of the wanted."""
    target = fit.target
    fit.wanted = seen.middle_nd
    found = seen.heads.solve(_RIDGE, intercept=target.has("attention.query.bias", layer))
    pairs = [(place, head) for place, head in enumerate(taken.heads) if head is not None]
    parts_iv = found.W_io.chunk(3 * len(pairs), dim=1)
    biases_v = found.b_o.chunk(3 * len(pairs))
    for index, (place, head) in enumerate(pairs):
        of_head = slice(3 * index, 3 * index + 3)
        _write_head(fit, layer, place, head, parts_iv[of_head], biases_v[of_head], seen)
    error = fit.solve_rest("attention.out", layer, (target.layer_module(layer), "input"), seen.sums_nd)
    if not target.structure.family.prenorm:
        error = fit.fit_norm("attention.norm", layer)
    return error


def _write_head(
    fit: TransformerFit, layer: int, place: int, head: SourceHead,
    weights_iv: Sequence[Tensor], biases_v: Sequence[Tensor], seen: Seen,
) -> None:  # fmt: skip
    """Write one head's queries, and its group's keys and values.

    q·k/√width stays as in the source. Where the target's head is wider, its other queries are zero and its other keys
    and values stay as they are: zero queries keep the scores and can still learn.
    """
    target, dimensions = fit.target, fit.target.structure.dimensions
    group = place // (dimensions.heads // dimensions.key_value_heads)
    starts = (place, group, group)
    width = target.view("attention.query.weight", layer).shape[0] // dimensions.heads
    source_width = weights_iv[0].shape[1]
    maps_vw, rows_w = _maps(fit, head, layer, width, weights_iv, biases_v, seen)
    factors = ((width / source_width) ** 0.5, 1.0, 1.0)
    for role, start, W_iv, b_v, M_vw, rows, factor in zip(
        ROLES, starts, weights_iv, biases_v, maps_vw, rows_w, factors, strict=True
    ):
        block = Affine(W_iv @ M_vw * factor, b_v @ M_vw * factor, b_v, b_v, 0.0)
        if role == "attention.query":
            everything = slice(start * width, (start + 1) * width)
            target.write(f"{role}.weight", torch.zeros(width, len(W_iv)), layer, everything)
            target.write(f"{role}.bias", torch.zeros(width), layer, everything)
        target.write_affine(role, block, layer, start * width + rows)


def _maps(
    fit: TransformerFit, head: SourceHead, layer: int, width: int,
    weights_iv: Sequence[Tensor], biases_v: Sequence[Tensor], seen: Seen,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """How queries, keys and values of the source's width become the target's, and the rows of the head that they fill.

    Rows that a position rotates are matched by their speed and never mixed.
    """
    source_width = weights_iv[0].shape[1]
    eye = torch.eye(source_width, dtype=torch.float64, device=weights_iv[0].device)
    first = torch.arange(min(width, source_width))
    maps, rows = [eye, eye, eye], [first, first, first]
    if fit.source.structure.family.rotary and fit.target.structure.family.rotary:
        rows_w, rows_v = rotary_rows(width, source_width)
        maps[:2], rows[:2] = [eye[:, rows_v]] * 2, [rows_w] * 2
    elif width < source_width:
        C_q = _second_moments(seen, weights_iv[0], biases_v[0])
        C_k = weights_iv[1].T @ seen.heads.moments()[1] @ weights_iv[1]
        maps[:2] = narrower_scores(C_q, C_k, width)
    if width < source_width:
        C_v = weights_iv[2].T @ seen.heads.moments()[1] @ weights_iv[2]
        columns = slice(head.head * source_width, (head.head + 1) * source_width)
        O_Dv = fit.source.view("attention.out.weight", head.layer)[:, columns].to(C_v)
        maps[2] = narrower_values(C_v, O_Dv.T @ fit.stream.P_Dd.to(C_v), width)
    return maps, rows


def _second_moments(seen: Seen, W_iv: Tensor, b_v: Tensor) -> Tensor:
    mean_i, S_ii = seen.heads.moments()
    mean_v = mean_i @ W_iv + b_v
    return W_iv.T @ S_ii @ W_iv + torch.outer(mean_v, mean_v)
