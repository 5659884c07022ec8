"""Maps of attention axes where groups of queries share keys and values: which heads and rows go together.

Shape suffixes: h heads of queries, g groups (heads of keys and values); l a source's, t a target's entries.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mergenet_core.architectures.axes import axis_kind
from mergenet_core.pairing.result import AxisPair, Pairing
from mergenet_core.transfer.maps import AxisMap, selection


def is_grouped(name: str, pairing: Pairing) -> bool:
    """Whether an axis is one of attention whose keys have a map of their own."""
    return _twin(name, "keys") in pairing.axes


def grouped_map(name: str, source: Mapping[str, Tensor], pairing: Pairing) -> AxisMap:
    """The map of queries, keys, values or contexts that keeps every query with the keys and values that it reads.

    The target's groups take the source's groups of the largest ‖W_q‖·‖W_k‖, and within each its strongest queries. A
    group with fewer queries than the target's leaves the others as they are; it never gets a query of another group.
    """
    kept_g, kept_h = _kept_heads(name, source, pairing)
    queries, keys = pairing.axes[_twin(name, "queries")], pairing.axes[_twin(name, "keys")]
    assert queries.heads is not None
    assert keys.heads is not None
    axis = pairing.axes[name]
    width_l, width_t = queries.source_size // queries.heads[0], queries.target_size // queries.heads[1]
    shared = axis_kind(name) in ("keys", "values")
    per_group = queries.heads[1] // keys.heads[1]
    places = (
        list(enumerate(kept_g))
        if shared
        else [
            (group * per_group + place, head) for group, heads in enumerate(kept_h) for place, head in enumerate(heads)
        ]
    )
    turned = axis_kind(name) in ("queries", "keys") and axis.rotary
    cover, select = [], []
    for place, head in places:
        rows_t, rows_l = _rotary_rows(width_t, width_l) if turned else _first_rows(width_t, width_l)
        cover.append(place * width_t + rows_t)
        select.append(head * width_l + rows_l)
    cover_t, select_t = torch.cat(cover), torch.cat(select)
    order = cover_t.argsort()
    return AxisMap(cover_t[order], select_t=select_t[order])


def _kept_heads(name: str, source: Mapping[str, Tensor], pairing: Pairing) -> tuple[list[int], list[list[int]]]:
    """The source's group for each of the target's, and the source's queries for each of the target's groups."""
    queries, keys = pairing.axes[_twin(name, "queries")], pairing.axes[_twin(name, "keys")]
    assert queries.heads is not None
    assert keys.heads is not None
    per_group_l, per_group_t = queries.heads[0] // keys.heads[0], queries.heads[1] // keys.heads[1]
    query_h = _energy("attention.query.weight", _twin(name, "queries"), queries, source, pairing)
    key_g = _energy("attention.key.weight", _twin(name, "keys"), keys, source, pairing)
    scores_gh = query_h.view(keys.heads[0], per_group_l) * key_g[:, None]
    if keys.heads[1] > keys.heads[0]:  # more groups than the source has: each of its queries may lead one
        best = selection(scores_gh.flatten(), keys.heads[1]).select_t
        assert best is not None
        return [int(head) // per_group_l for head in best], [[int(head)] for head in best]
    kept_g = selection(scores_gh.sum(dim=1), keys.heads[1]).select_t
    assert kept_g is not None
    kept_h = []
    for group in kept_g.tolist():
        strongest = selection(scores_gh[group], per_group_t).select_t
        assert strongest is not None
        kept_h.append([group * per_group_l + int(place) for place in strongest])
    return kept_g.tolist(), kept_h


def _energy(role: str, axis_name: str, axis: AxisPair, source: Mapping[str, Tensor], pairing: Pairing) -> Tensor:
    """The sum of squares of each head's rows."""
    assert axis.heads is not None
    pair = next(pair for pair in pairing.pairs if pair.role == role and pair.out == axis_name)
    return source[pair.source].detach().float().square().sum(dim=1).view(axis.heads[0], -1).sum(dim=1)


def _first_rows(width_t: int, width_l: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(min(width_t, width_l))
    return rows, rows


def _rotary_rows(width_t: int, width_l: int) -> tuple[Tensor, Tensor]:
    """Rows that turn together stay together, each pair going to the one that turns most nearly as fast."""
    half_t, half_l = width_t // 2, width_l // 2
    if half_t <= half_l:
        turns_t = torch.arange(half_t)
        turns_l = turns_t * half_l // half_t
    else:
        turns_l = torch.arange(half_l)
        turns_t = turns_l * half_t // half_l
    return torch.cat([turns_t, half_t + turns_t]), torch.cat([turns_l, half_l + turns_l])


def _twin(name: str, kind: str) -> str:
    return name.replace(f"{axis_kind(name)}.", f"{kind}.", 1)
