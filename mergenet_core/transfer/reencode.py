"""The re-encoding W ≈ B A of a weight (MergeNet, section 3), computed from products with the weight alone.

The paper learns B and A; here they are the truncated SVD of a given weight, so that a weight of any origin, also one
that is spread over processes, has the same factors everywhere. A convolution is reshaped to out × in·k·k as there.

Shape suffixes: m rows, n columns, r rank, k rank with oversampling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.pairing.result import WeightPair
from mergenet_core.transfer.shards.exchange import batched_sums
from mergenet_core.transfer.views import WeightView, view_of

_OVERSAMPLING = 8
_POWER_STEPS = 4


@runtime_checkable
class FactoredWeights(Protocol):
    """Weights that are stored as factors, so that a re-encoding of no higher rank needs no SVD."""

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """B and A of a weight, as `factorize` returns them; None where it is stored whole."""


def source_factors(source: Mapping[str, Tensor], pair: WeightPair, like: Tensor) -> tuple[Tensor, Tensor]:
    """The re-encoding of a pair's source weight, in the dtype and on the device of `like`.

    Shapes: B (m, r), A (r, n).
    """
    assert pair.rank is not None
    stored = source.factors(pair.source) if isinstance(source, FactoredWeights) else None
    if stored is not None:
        B_mk, A_kn = stored
        if (len(B_mk), A_kn.shape[1]) == matrix_shape(pair.source_shape, pair.form):
            return B_mk[:, : pair.rank].to(like, copy=True), A_kn[: pair.rank].to(like, copy=True)
    return factorize(view_of(source[pair.source].detach().to(like), pair.form), pair.rank)


def factorize(view: WeightView, rank: int) -> tuple[Tensor, Tensor]:
    """Re-encode a weight as B A of rank r: the truncated SVD, with the singular values shared evenly by B and A.

    Shapes: B (m, r), A (r, n).
    Equation: W ≈ B A, BᵀB = A Aᵀ = Σ_r; the entry of largest magnitude in each column of B is positive.

    Where r is near min(m, n) it is exact. Below, the range is found by randomized subspace iteration (Halko et al.,
    arXiv 0909.4061) from a fixed start, so that a weight has the same factors on every process.
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


def refactorize(views: Collection[WeightView], earlier: Collection[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Re-encode weights that changed a little since their factors `earlier` (A of each): one iteration is enough.

    Shapes: for each weight, B (m, r), A (r, n).

    Sharded weights need two exchanges for all of them together.
    """
    with batched_sums():
        products = [_range(view, A_rn) for view, A_rn in zip(views, earlier, strict=True)]
    bases = [
        torch.eye(view.shape[0]) if X_mr is None else torch.linalg.qr(X_mr).Q
        for view, X_mr in zip(views, products, strict=True)
    ]
    with batched_sums():
        projected = [view.right(Q_mr) for view, Q_mr in zip(views, bases, strict=True)]
    return [_factors(Q_mr, X_rn, len(A_rn)) for Q_mr, X_rn, A_rn in zip(bases, projected, earlier, strict=True)]


def _range(view: WeightView, earlier_rn: Tensor) -> Tensor | None:
    """Columns that span the range of W Aᵀ; None at full row rank, where the identity is a basis."""
    (m, n), rank = view.shape, len(earlier_rn)
    if rank == m:
        return None
    return view.left(torch.eye(n) if rank == n else earlier_rn.T)


def _factors(Q_mk: Tensor, projected_kn: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B and A from an orthonormal basis Q and its product Qᵀ W."""
    U_kk, S_k, V_kn = torch.linalg.svd(projected_kn.double(), full_matrices=False)
    B_mr = (Q_mk.to(U_kk) @ U_kk[:, :rank]) * S_k[:rank].sqrt()
    A_rn = S_k[:rank].sqrt()[:, None] * V_kn[:rank]
    signs_r = B_mr.gather(0, B_mr.abs().argmax(0, keepdim=True)).sign()[0]
    signs_r = torch.where(signs_r == 0, torch.ones_like(signs_r), signs_r)
    return (B_mr * signs_r).to(projected_kn.dtype), (A_rn * signs_r[:, None]).to(projected_kn.dtype)
