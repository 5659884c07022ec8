"""Which of the source's attention heads each head of the target takes, and a head's queries and keys at its width.

A target head takes one source head: two heads in one would share a softmax, and neither pattern would survive.

Legend: h heads, g groups of heads that share keys and values, v and w a head's width in source and target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.architectures.schema import Dimensions


@dataclass(frozen=True)
class SourceHead:
    """A head of queries, and the head of keys and values that it reads."""

    layer: int
    head: int
    group: int


def choose_heads(energy_h: Mapping[int, Tensor], source: Dimensions, target: Dimensions) -> list[SourceHead | None]:
    """The source head for each of the target's heads, from layer → energy of its heads; None where there is none left.

    The heads of largest energy, in the source's order. The heads of a target's group take heads of one source group.
    """
    per_source, per_target = source.heads // source.key_value_heads, target.heads // target.key_value_heads
    ranked: list[tuple[float, list[tuple[float, SourceHead]]]] = []
    for layer, energies in energy_h.items():
        heads = [(float(e), SourceHead(layer, head, head // per_source)) for head, e in enumerate(energies)]
        size = per_source if per_target > 1 else 1
        groups = [heads[first : first + size] for first in range(0, len(heads), size)]
        ranked += [(sum(energy for energy, _ in group), group) for group in groups]
    kept = sorted(range(len(ranked)), key=lambda index: -ranked[index][0])[: target.key_value_heads]
    chosen: list[SourceHead | None] = []
    for index in sorted(kept):
        group = sorted(ranked[index][1], key=lambda entry: -entry[0])[:per_target]
        taken = sorted((head for _, head in group), key=lambda head: head.head)
        chosen += [*taken, *[None] * (per_target - len(taken))]
    return chosen + [None] * (target.heads - len(chosen))


def narrower_scores(C_q: Tensor, C_k: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Maps of queries and keys to a smaller width that keep the attention scores q·k best.

    Equation: with second moments C_q of queries and C_k of centred keys and C_q^½ C_k^½ = U Σ Vᵀ, the maps are
    C_q^-½ U Σ^½ and C_k^-½ V Σ^½, cut to the largest singular values. Shapes: (v, v), (v, v) → (v, w), (v, w).
    """
    (root_q, inverse_q), (root_k, inverse_k) = _roots(C_q), _roots(C_k)
    U, S, Vh = torch.linalg.svd(root_q @ root_k)
    scale = S[:width].sqrt()
    return inverse_q @ U[:, :width] * scale, inverse_k @ Vh[:width].T * scale


def narrower_values(C_v: Tensor, O_vd: Tensor, width: int) -> Tensor:
    """The map of values to a smaller width that keeps best what the output projection O makes of them.

    Equation: C^-½ U with U the leading left singular vectors of C^½ O, C the values' covariance. Shapes: (v, w).
    """
    root, inverse = _roots(C_v)
    found: Tensor = inverse @ torch.linalg.svd(root @ O_vd, full_matrices=False).U[:, :width]
    return found


def _roots(C: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(C)
    values = values.clamp_min(float(values[-1]) * 1e-8 + 1e-30).sqrt()
    return vectors * values @ vectors.T, vectors / values @ vectors.T
