"""Re-encoding W ≈ B A, from products with the weight alone.

Shape suffixes: m rows, n columns, r rank, k rank with oversampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mergenet_core.jobs.pairs import WeightPair
from mergenet_core.jobs.parts import matrix_shape
from mergenet_core.transfer.views import WeightView, view_of

_OVERSAMPLING = 8
_POWER_STEPS = 4


@runtime_checkable
class Factored(Protocol):
    """Weights that are kept by their factors: a re-encoding of no higher rank is there without composing them."""

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """B and A of a weight, as `factorize` gives them; None where it is kept whole."""


def source_factors(source: Mapping[str, Tensor], pair: WeightPair, like: Tensor) -> tuple[Tensor, Tensor]:
    """The re-encoding of a pair's source weight, its dtype and device those of `like`. Shapes: B (m, r), A (r, n)."""
    assert pair.rank is not None
    kept = source.factors(pair.source) if isinstance(source, Factored) else None
    if kept is not None:
        B_mk, A_kn = kept
        if (len(B_mk), A_kn.shape[1]) == matrix_shape(pair.source_shape, pair.form):
            return B_mk[:, : pair.rank].to(like, copy=True), A_kn[: pair.rank].to(like, copy=True)
    return factorize(view_of(source[pair.source].detach().to(like), pair.form), pair.rank)


def factorize(view: WeightView, rank: int, near_rn: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Re-encode a weight as B A of a rank r: the truncated SVD, its singular values shared out evenly.

    Shapes: B (m, r), A (r, n). Equation: W ≈ B A, BᵀB = A Aᵀ = Σ_r; the largest entry of each column of B is positive.
    Where r is near min(m, n) it is exact; below, the range is found by randomized subspace iteration (Halko et al.,
    arXiv 0909.4061) from a fixed start, so that the same weight always has the same factors, on every process. With
    `near_rn`, the factor A of the weight as it was a few steps ago, one iteration from there does.
    """
    m, n = view.shape
    size = min(rank + _OVERSAMPLING, m, n)
    if near_rn is not None and rank < min(m, n):
        Q_mk = torch.linalg.qr(view.left(near_rn.T)).Q
    elif size == min(m, n):
        Q_mk = torch.eye(m) if m <= n else torch.linalg.qr(view.left(torch.eye(n)).double()).Q
    else:
        start_nk = torch.randn(n, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        Q_mk = torch.linalg.qr(view.left(start_nk).double()).Q
        for _ in range(_POWER_STEPS):
            Q_nk = torch.linalg.qr(view.right(Q_mk).double().T).Q
            Q_mk = torch.linalg.qr(view.left(Q_nk).double()).Q
    projected_kn = view.right(Q_mk)
    U_kk, S_k, V_kn = torch.linalg.svd(projected_kn.double(), full_matrices=False)
    B_mr = (Q_mk.to(U_kk) @ U_kk[:, :rank]) * S_k[:rank].sqrt()
    A_rn = S_k[:rank].sqrt()[:, None] * V_kn[:rank]
    signs_r = B_mr.gather(0, B_mr.abs().argmax(0, keepdim=True)).sign()[0]
    signs_r = torch.where(signs_r == 0, torch.ones_like(signs_r), signs_r)
    return (B_mr * signs_r).to(projected_kn.dtype), (A_rn * signs_r[:, None]).to(projected_kn.dtype)
