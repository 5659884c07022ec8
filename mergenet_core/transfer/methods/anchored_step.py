"""The anchored operator for one pair of weights: target units X move towards mixtures of source units Y = B A.

Equations (τ = 16; B and A are the source's factors, D = diag(1/rms) of the rows of B A, so that Ŷ = D B A):

1. Z = τ X̂ (Ŷ W_k)ᵀ / d, where Ŷ W_k = D B (A + key); `key` is learned and zero at the start, so that W_k = I.
2. P = softmax_row(Sinkhorn₅(Z)): every source unit is part of some target unit.
3. M = rmsnorm(P (Ŷ + Ŷ W_v)), where Ŷ + Ŷ W_v = D B (A + value); `value` is learned and zero at the start.
4. X' = X + tanh(g)(rms(X)·M − X); then each row gets back the root mean square that it had in X.

The paper's adapter attends between factors of both weights and has no gate; this operator needs an axis with the same
meaning in both models, and keeps the scale of each row. X and its gradient may be spread over processes, so all of it
is computed from products of X with r columns: X' = diag(a) X + C N.

Shape suffixes: t target units, l source units, d coordinates that both share, r rank, k any; g target heads, h source
heads, w rows of a head; ^ (hat) rows of root mean square 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mergenet_core.transfer.shards.exchange import batched_sums
from mergenet_core.transfer.views import WeightView

TEMPERATURE = 16.0
"""τ: at 4 every row collapses onto the mean, 8 is fragile."""
SINKHORN_STEPS = 5
_EPSILON = 1e-12
_CHUNK_ROWS = 256
"""Rows of a map whose gradient is computed at a time, so that they stay in the processor's cache."""


class UnitMap:
    """The map P: how each target unit is made of source units; for attention, how each head is made of heads.

    Every source unit is part of some target unit. For heads of `width` rows, P is between heads. Only the source heads
    `filled` take part, if any are named.

    Shapes: queries (t, d), keys (l, d); P (t, l), or (g, h) between heads.
    Equation: P = softmax_row(Sinkhorn₅(Z)), Z = Q Kᵀ; between heads, Z is the sum over their rows.
    """

    def __init__(self, queries_td: Tensor, keys_ld: Tensor, width: int = 1, filled: Tensor | None = None) -> None:
        self._width, self._filled = width, filled
        queries, keys = queries_td.reshape(len(queries_td) // width, -1), self._heads(keys_ld)
        self._gradient_terms: list[_GradientTerm] = []
        self.P, self._graph = _Sinkhorn.apply(self._gradient_terms, queries, keys)  # type: ignore[no-untyped-call]

    def mix(self, Y_lk: Tensor) -> Tensor:
        """Source rows as target units, P Y; a head's rows stay together. Shapes: (l, k) → (t, k)."""
        heads = self._heads(Y_lk)
        mixed: Tensor = _Mix.apply(self._gradient_terms, self.P, self._graph, heads)  # type: ignore[no-untyped-call]
        return mixed.view(-1, Y_lk.shape[1])

    def _heads(self, Y_lk: Tensor) -> Tensor:
        heads = Y_lk.reshape(len(Y_lk) // self._width, -1)
        return heads if self._filled is None else heads[self._filled.to(heads.device)]


@dataclass(frozen=True)
class HeadLayout:
    """How an axis is divided into attention heads."""

    width: int = 1
    """Rows of a head."""
    filled_h: Tensor | None = None
    """The source heads that take part; None for all."""


NO_HEADS = HeadLayout()


def attention_map(X_tr: Tensor, Y_lr: Tensor, columns: int, heads: HeadLayout = NO_HEADS) -> UnitMap:
    """The map P from attention between target units and source units.

    `X_tr` is X̂ Kᵀ, the target's rows in the coordinates of the source's factor, where Ŷ W_k = Y_lr K.

    Equation: Z = τ X̂ Kᵀ Y_lrᵀ / d; between heads, the mean over their rows.
    """
    return UnitMap(TEMPERATURE / (columns * heads.width) * X_tr, Y_lr, heads.width, heads.filled_h)


class UpdateFactors(NamedTuple):
    """The update X' = diag(a) X + C N. Shapes: a (t), C (t, r), N (r, d)."""

    a_t: Tensor
    C_tr: Tensor
    N_rd: Tensor


class GradientProducts(NamedTuple):
    """What an update's factors need of the gradient G at X'. Shapes: (t), (t, r), (r, d)."""

    dots_t: Tensor
    """The row sums of G∘X'."""
    GN_tr: Tensor
    """G Nᵀ."""
    CG_rd: Tensor
    """Cᵀ G."""


class WeightUpdate:
    """The update X' = diag(a) X + C N of one weight, and the backward pass through it.

    Between `write_` and `write_gradient_` the weight is X', and X is known only as diag(1/a)(X' − C N).
    """

    def __init__(self, view: WeightView, squares_t: Tensor) -> None:
        self.view = view
        self.squares_t = squares_t.requires_grad_()
        """The sum of squares of each row of X."""

    def set_factors(self, factors: UpdateFactors) -> None:
        """Set the update's factors, detached from the graph."""
        self._a_t, self._C_tr, self._N_rd = (factor.detach() for factor in factors)

    def write_(self) -> None:
        """Replace X by X'."""
        self.view.scale_add_(self._a_t, self._C_tr, self._N_rd)

    def save_product_gradient(self, G_tk: Tensor, K_kd: Tensor) -> Tensor:
        """Save the gradient of the product X Kᵀ for `write_gradient_`; returns diag(1/a) G, to be multiplied by X'."""
        self._G_tk, self._K_kd = G_tk, K_kd
        return G_tk / self._a_t[:, None]

    def without_update(self, GX_kd: Tensor, scaled_tk: Tensor) -> Tensor:
        """Gᵀ X from diag(1/a) G and its product with X': the gradient of the product X Kᵀ for K."""
        return GX_kd - (scaled_tk.T @ self._C_tr) @ self._N_rd

    def gradient_products(self) -> GradientProducts:
        """The products of the gradient at X' that `factor_gradients` needs."""
        return GradientProducts(
            self.view.grad_dots(), self.view.grad_left(self._N_rd.T), self.view.grad_right(self._C_tr)
        )

    def factor_gradients(self, products: GradientProducts) -> UpdateFactors:
        """The loss's gradient for a, C and N: the row sums of G∘X, G Nᵀ and Cᵀ G."""
        dots_t, GN_tr, CG_rd = products
        return UpdateFactors((dots_t - (GN_tr * self._C_tr).sum(dim=1)) / self._a_t, GN_tr, CG_rd)

    def write_gradient_(self, squares_t: Tensor) -> None:
        """Replace the gradient G at X' by the one at X; `squares_t` is the gradient for the row squares of X.

        Equation: diag(a) G + 2 diag(squares) X + G_k K with the gradient G_k of the product X Kᵀ, where
        X = diag(1/a)(X' − C N) and the last rows of K are N.
        """
        scale_t = 2 * squares_t / self._a_t
        B_tk = self._G_tk.clone()
        B_tk[:, -len(self._N_rd) :] -= scale_t[:, None] * self._C_tr
        self.view.grad_combine_(self._a_t, scale_t, B_tk, self._K_kd)


@dataclass(frozen=True)
class _GradientTerm:
    """A map's gradient from one product O = P Y with gradient D: D Yᵀ, kept as factors."""

    D_tk: Tensor
    Y_lk: Tensor
    row_sums_t: Tensor
    """The row sums of P∘(D Yᵀ), which are those of D∘O."""
    column_sums_l: Tensor
    """The column sums of P∘(D Yᵀ), which are the row sums of (Pᵀ D)∘Y."""


class _SinkhornContext(Protocol):
    """What `_Sinkhorn` keeps for its backward pass."""

    gradient_terms: list[_GradientTerm]
    u_t: list[Tensor]
    v_l: list[Tensor]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


class _Sinkhorn(torch.autograd.Function):
    """softmax_row(Sinkhorn₅(Z)) of Z = Q Kᵀ with a single matrix of that size in memory: E = exp(Z), which becomes P.

    Equations: v₀ = 1, u_k = 1 / (E v_{k−1}), v_k = 1 / (Eᵀ u_k), P = diag(u₆) E diag(v₅). Let a_k and b_k be the
    gradients of E v_{k−1} and Eᵀ u_k. Then the gradient of Z is P∘G + E∘(Σ a_k v_{k−1}ᵀ + Σ u_k b_kᵀ), where G, the
    gradient of P, is a sum of low-rank terms, and E is P with rows divided by u₆ and columns by v₅. Adding a constant
    to a row of Z changes nothing, and |Z| is about τ at most, so exp(Z) neither overflows nor underflows.
    """

    @staticmethod
    def forward(
        ctx: _SinkhornContext, gradient_terms: list[_GradientTerm], queries_td: Tensor, keys_ld: Tensor
    ) -> tuple[Tensor, Tensor]:
        E_tl = queries_td @ keys_ld.T
        E_tl.sub_(E_tl.amax(dim=1, keepdim=True)).exp_()
        u_t, v_l = [], [E_tl.new_ones(E_tl.shape[1])]
        for _ in range(SINKHORN_STEPS):
            u_t.append(1 / (E_tl @ v_l[-1]))
            v_l.append(1 / (E_tl.T @ u_t[-1]))
        u_t.append(1 / (E_tl @ v_l[-1]))
        P_tl = E_tl.mul_(u_t[-1][:, None]).mul_(v_l[-1])
        ctx.save_for_backward(queries_td, keys_ld, P_tl)
        ctx.mark_non_differentiable(P_tl)
        ctx.set_materialize_grads(False)  # a gradient for P would be as large as P
        ctx.gradient_terms, ctx.u_t, ctx.v_l = gradient_terms, u_t, v_l
        return P_tl, E_tl.new_zeros(())

    @staticmethod
    def backward(ctx: _SinkhornContext, _: Tensor, __: Tensor) -> tuple[None, Tensor, Tensor]:
        queries_td, keys_ld, P_tl = ctx.saved_tensors
        u_t, v_l = ctx.u_t, ctx.v_l
        last_u_t, last_v_l = u_t[-1], v_l[-1]
        a_t, b_l = [-sum(term.row_sums_t for term in ctx.gradient_terms) * last_u_t], []
        from_P_l = sum(term.column_sums_l for term in ctx.gradient_terms) / last_v_l
        for step in range(SINKHORN_STEPS, 0, -1):
            to_columns_l = P_tl.T @ (a_t[-1] / last_u_t) / last_v_l
            b_l.append(-(from_P_l + to_columns_l) * v_l[step] ** 2)
            a_t.append(-(P_tl @ (b_l[-1] / last_v_l)) / last_u_t * u_t[step - 1] ** 2)
            from_P_l = torch.zeros_like(from_P_l)
        left_tk = torch.stack([*reversed(a_t), *u_t[:-1]], dim=1) / last_u_t[:, None]
        right_lk = torch.stack([*v_l, *reversed(b_l)], dim=1) / last_v_l[:, None]
        left_tk = torch.cat([*(term.D_tk for term in ctx.gradient_terms), left_tk], dim=1)
        right_lk = torch.cat([*(term.Y_lk for term in ctx.gradient_terms), right_lk], dim=1)
        GQ_td, GK_ld = torch.empty_like(queries_td), torch.zeros_like(keys_ld)
        for start in range(0, len(P_tl), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            GZ_bl = (left_tk[rows] @ right_lk.T).mul_(P_tl[rows])
            GQ_td[rows] = GZ_bl @ keys_ld
            GK_ld.addmm_(GZ_bl.T, queries_td[rows])
        return None, GQ_td, GK_ld


class _MixContext(Protocol):
    """What `_Mix` keeps for its backward pass."""

    gradient_terms: list[_GradientTerm]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Mix(torch.autograd.Function):
    """The product P Y. Its backward pass leaves the gradient of P in `gradient_terms`, where `_Sinkhorn` reads it."""

    @staticmethod
    def forward(ctx: _MixContext, gradient_terms: list[_GradientTerm], P_tl: Tensor, _: Tensor, Y_lk: Tensor) -> Tensor:
        O_tk = P_tl @ Y_lk
        ctx.gradient_terms = gradient_terms
        ctx.save_for_backward(P_tl, Y_lk, O_tk)
        return O_tk

    @staticmethod
    def backward(ctx: _MixContext, D_tk: Tensor) -> tuple[None, None, Tensor, Tensor]:
        P_tl, Y_lk, O_tk = ctx.saved_tensors
        PD_lk = P_tl.T @ D_tk
        ctx.gradient_terms.append(
            _GradientTerm(D_tk, Y_lk.detach(), torch.linalg.vecdot(D_tk, O_tk), torch.linalg.vecdot(PD_lk, Y_lk))
        )
        return None, None, D_tk.new_zeros(()), PD_lk


class _ProductsContext(Protocol):
    """What `_Products` keeps for its backward pass."""

    updates: Sequence[WeightUpdate]
    keys_kd: Sequence[Tensor]


class _Products(torch.autograd.Function):
    """X Kᵀ for weights X that may be spread over processes; at the backward pass the weights have become X'."""

    @staticmethod
    def forward(ctx: _ProductsContext, updates: Sequence[WeightUpdate], *keys_kd: Tensor) -> tuple[Tensor, ...]:
        ctx.updates, ctx.keys_kd = updates, [K_kd.detach() for K_kd in keys_kd]
        with batched_sums():
            return tuple(update.view.left(K_kd.T) for update, K_kd in zip(updates, ctx.keys_kd, strict=True))

    @staticmethod
    def backward(ctx: _ProductsContext, *gradients_tk: Tensor) -> tuple[Tensor | None, ...]:
        triples = zip(ctx.updates, gradients_tk, ctx.keys_kd, strict=True)
        scaled = [update.save_product_gradient(G_tk, K_kd) for update, G_tk, K_kd in triples]
        with batched_sums():
            products = [update.view.right(G_tk) for update, G_tk in zip(ctx.updates, scaled, strict=True)]
        return None, *(
            update.without_update(GX_kd, G_tk)
            for update, GX_kd, G_tk in zip(ctx.updates, products, scaled, strict=True)
        )


def key_products(updates: Sequence[WeightUpdate], keys_kd: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """X Kᵀ of each weight before its update, differentiable for K. Shapes: K (k, d) → (t, k)."""
    products: tuple[Tensor, ...] = _Products.apply(updates, *keys_kd)  # type: ignore[no-untyped-call]
    return products


@dataclass(frozen=True)
class SourceUnits:
    """The source's units Y = B A in the target's coordinates. Shapes: B (l, r), A (r, d)."""

    B_lr: Tensor
    A_rd: Tensor


@dataclass(frozen=True)
class StepParameters:
    """The adapter's parameters for one weight, the learned W_k and W_v given as changes of A."""

    value_rd: Tensor
    gate: Tensor
    key_rd: Tensor | None = None
    """None where no map is made from this weight."""

    def product_rows(self, A_rd: Tensor) -> Tensor:
        """The rows K whose product X Kᵀ the step needs: A + key, if there is one, above A + value."""
        N_rd = A_rd + self.value_rd
        return N_rd if self.key_rd is None else torch.cat([A_rd + self.key_rd, N_rd])


def anchored_step(
    update: WeightUpdate,
    source: SourceUnits,
    products_tk: Tensor,
    parameters: StepParameters,
    *,
    unit_map: UnitMap | None = None,
    heads: HeadLayout = NO_HEADS,
) -> tuple[UpdateFactors, UnitMap | None]:
    """Set the factors of one weight's update; returns them with their graph, and the map that was used.

    `products_tk` is X Kᵀ for K from `StepParameters.product_rows`. With a key the map P is made here; otherwise it is
    `unit_map`, or the identity where that is None, so that each unit has its own counterpart. Nothing is written.

    Equation: 1 to 4 of this module's docstring.
    """
    B_lr, A_rd = source.B_lr, source.A_rd
    columns = update.view.shape[1]
    Y_lr = B_lr * _inverse_rms(B_lr, A_rd, columns)
    N_rd = A_rd + parameters.value_rd
    size_t1 = (update.squares_t / columns + _EPSILON).sqrt()[:, None]
    XN_tr = products_tk[:, -len(N_rd) :]
    if parameters.key_rd is not None:
        unit_map = attention_map(products_tk[:, : len(N_rd)] / size_t1, Y_lr, columns, heads)
    C_tr = Y_lr if unit_map is None else unit_map.mix(Y_lr)
    C_tr = C_tr * _inverse_rms(C_tr, N_rd, columns)
    openness = torch.tanh(parameters.gate)
    C_tr = openness * size_t1 * C_tr
    cross_t = (C_tr * XN_tr).sum(dim=1)
    own_t = ((C_tr @ (N_rd @ N_rd.T)) * C_tr).sum(dim=1)
    squares_t = (1 - openness) ** 2 * update.squares_t + 2 * (1 - openness) * cross_t + own_t
    scale_t1 = size_t1 / (squares_t.clamp(min=0) / columns + _EPSILON).sqrt()[:, None]
    factors = UpdateFactors(((1 - openness) * scale_t1)[:, 0], scale_t1 * C_tr, N_rd)
    update.set_factors(factors)
    return factors, unit_map


def _inverse_rms(B_lr: Tensor, A_rd: Tensor, columns: int) -> Tensor:
    """One over the root mean square of each row of B A, from the factors. Shapes: (l, 1)."""
    squares_l = ((B_lr @ (A_rd @ A_rd.T)) * B_lr).sum(dim=1)
    return (squares_l.clamp(min=0) / columns + _EPSILON).rsqrt()[:, None]
