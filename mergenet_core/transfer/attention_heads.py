"""Axis maps of attention where a group of queries shares keys and values: which heads and rows go together.

The paper has no equation for this; the maps belong to the anchored projection.

Shape suffixes: h heads of queries, g groups (heads of keys and values); l a source's, t a target's entries.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mergenet_core.architectures.axes import axis_kind
from mergenet_core.pairing.result import AxisPair, Pairing
from mergenet_core.transfer.axis_maps import AxisMap, largest_entries


def is_grouped(name: str, pairing: Pairing) -> bool:
    """Whether an axis belongs to an attention layer whose keys have an axis of their own."""
    return _layer_axis(name, "keys") in pairing.axes


def grouped_map(name: str, source: Mapping[str, Tensor], pairing: Pairing) -> AxisMap:
    """The map of queries, keys, values or contexts that keeps each query with the keys and values it reads.

    The target's groups take the source's groups with the largest ‖W_q‖·‖W_k‖, and in each group its strongest queries.
    Where a source group has fewer queries than the target's, the other queries keep their values: a query of another
    group would read the wrong keys.
    """
    kept_g, kept_h = _kept_heads(name, source, pairing)
    queries, keys = pairing.axes[_layer_axis(name, "queries")], pairing.axes[_layer_axis(name, "keys")]
    assert queries.heads is not None
    assert keys.heads is not None
    axis = pairing.axes[name]
    width_l, width_t = queries.source_size // queries.heads[0], queries.target_size // queries.heads[1]
    per_group = queries.heads[1] // keys.heads[1]
    if axis_kind(name) in ("keys", "values"):
        head_pairs = list(enumerate(kept_g))
    else:
        head_pairs = [
            (group * per_group + index, head) for group, heads in enumerate(kept_h) for index, head in enumerate(heads)
        ]
    rotary = axis_kind(name) in ("queries", "keys") and axis.rotary
    cover, select = [], []
    for head_t, head_l in head_pairs:
        rows_t, rows_l = rotary_rows(width_t, width_l) if rotary else _first_rows(width_t, width_l)
        cover.append(head_t * width_t + rows_t)
        select.append(head_l * width_l + rows_l)
    cover_t, select_t = torch.cat(cover), torch.cat(select)
    order = cover_t.argsort()
    return AxisMap(cover_t[order], select_t=select_t[order])


def _kept_heads(name: str, source: Mapping[str, Tensor], pairing: Pairing) -> tuple[list[int], list[list[int]]]:
    """The source's group for each of the target's, and the source's queries for each of the target's groups."""
    queries, keys = pairing.axes[_layer_axis(name, "queries")], pairing.axes[_layer_axis(name, "keys")]
    assert queries.heads is not None
    assert keys.heads is not None
    per_group_l, per_group_t = queries.heads[0] // keys.heads[0], queries.heads[1] // keys.heads[1]
    query_h = _energy("attention.query.weight", _layer_axis(name, "queries"), queries, source, pairing)
    key_g = _energy("attention.key.weight", _layer_axis(name, "keys"), keys, source, pairing)
    scores_gh = query_h.view(keys.heads[0], per_group_l) * key_g[:, None]
    if keys.heads[1] > keys.heads[0]:  # more groups than in the source: each of its queries may lead a group
        best = largest_entries(scores_gh.flatten(), keys.heads[1])
        return [int(head) // per_group_l for head in best], [[int(head)] for head in best]
    kept_g = largest_entries(scores_gh.sum(dim=1), keys.heads[1])
    kept_h = []
    for group in kept_g.tolist():
        strongest = largest_entries(scores_gh[group], per_group_t)
        kept_h.append([group * per_group_l + int(query) for query in strongest])
    return kept_g.tolist(), kept_h


def _energy(role: str, axis_name: str, axis: AxisPair, source: Mapping[str, Tensor], pairing: Pairing) -> Tensor:
    """The sum of squares of each head's rows."""
    assert axis.heads is not None
    pair = next(pair for pair in pairing.pairs if pair.role == role and pair.out == axis_name)
    return source[pair.source].detach().float().square().sum(dim=1).view(axis.heads[0], -1).sum(dim=1)


def _first_rows(width_t: int, width_l: int) -> tuple[Tensor, Tensor]:
    """The first rows of a head in target and source, as many as both have."""
    rows = torch.arange(min(width_t, width_l))
    return rows, rows


def rotary_rows(width_t: int, width_l: int) -> tuple[Tensor, Tensor]:
    """Rows k and k + half, which a position rotates together, matched by the nearest speed of rotation."""
    half_t, half_l = width_t // 2, width_l // 2
    if half_t <= half_l:
        first_t = torch.arange(half_t)
        first_l = first_t * half_l // half_t
    else:
        first_l = torch.arange(half_l)
        first_t = first_l * half_t // half_l
    return torch.cat([first_t, half_t + first_t]), torch.cat([first_l, half_l + first_l])


def _layer_axis(name: str, kind: str) -> str:
    """The axis of another kind in the same layer: `queries.3` for `values.3`."""
    return name.replace(f"{axis_kind(name)}.", f"{kind}.", 1)
