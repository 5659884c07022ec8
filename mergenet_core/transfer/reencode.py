"""Re-encoding W ≈ B A, from products with the weight alone.

Shape suffixes: m rows, n columns, r rank, k rank with oversampling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.pairing.result import WeightPair
from mergenet_core.transfer.shards import together
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


def factorize(view: WeightView, rank: int) -> tuple[Tensor, Tensor]:
    """Re-encode a weight as B A of a rank r: the truncated SVD, its singular values shared out evenly.

    Shapes: B (m, r), A (r, n). Equation: W ≈ B A, BᵀB = A Aᵀ = Σ_r; the largest entry of each column of B is positive.
    Where r is near min(m, n) it is exact; below, the range is found by randomized subspace iteration (Halko et al.,
    arXiv 0909.4061) from a fixed start, so that the same weight always has the same factors, on every process.
    """
    m, n = view.shape
    size = min(rank + _OVERSAMPLING, m, n)
    if size == min(m, n):
        Q_mk = torch.eye(m) if m <= n else torch.linalg.qr(view.left(torch.eye(n)).double()).Q
    else:
        start_nk = torch.randn(n, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        Q_mk = torch.linalg.qr(view.left(start_nk).double()).Q
        for _ in range(_POWER_STEPS):
            Q_nk = torch.linalg.qr(view.right(Q_mk).double().T).Q
            Q_mk = torch.linalg.qr(view.left(Q_nk).double()).Q
    return _factors(Q_mk, view.right(Q_mk), rank)


def refactorize(views: Collection[WeightView], near: Collection[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Re-encode weights again, from their factors A as they were a few steps ago: one iteration from there does.

    Shapes: of each, B (m, r), A (r, n). Two exchanges for all of them where the weights are sharded.
    """
    with together():
        products = [_range(view, A_rn) for view, A_rn in zip(views, near, strict=True)]
    bases = [
        torch.eye(view.shape[0]) if X_mr is None else torch.linalg.qr(X_mr).Q
        for view, X_mr in zip(views, products, strict=True)
    ]
    with together():
        projected = [view.right(Q_mr) for view, Q_mr in zip(views, bases, strict=True)]
    return [_factors(Q_mr, X_rn, len(A_rn)) for Q_mr, X_rn, A_rn in zip(bases, projected, near, strict=True)]


def _range(view: WeightView, near_rn: Tensor) -> Tensor | None:
    """Columns that span what the factors have to; None where they are as many as the rows, and any basis does."""
    (m, n), rank = view.shape, len(near_rn)
    if rank == m:
        return None
    return view.left(torch.eye(n) if rank == n else near_rn.T)


def _factors(Q_mk: Tensor, projected_kn: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B and A of Q (Qᵀ W)."""
    U_kk, S_k, V_kn = torch.linalg.svd(projected_kn.double(), full_matrices=False)
    B_mr = (Q_mk.to(U_kk) @ U_kk[:, :rank]) * S_k[:rank].sqrt()
    A_rn = S_k[:rank].sqrt()[:, None] * V_kn[:rank]
    signs_r = B_mr.gather(0, B_mr.abs().argmax(0, keepdim=True)).sign()[0]
    signs_r = torch.where(signs_r == 0, torch.ones_like(signs_r), signs_r)
    return (B_mr * signs_r).to(projected_kn.dtype), (A_rn * signs_r[:, None]).to(projected_kn.dtype)
