"""One move of a target's units towards a source's, told in factors: the anchored operator for one pair of weights.

Shape suffixes: t target units, l source units, d shared coordinates of both, r rank, k any; g, h heads of target and
source, w rows of a head; ^ (hat) RMS-normalised rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergenet_core.transfer.shards import together
from mergenet_core.transfer.views import WeightView

TEMPERATURE = 16.0
"""τ: at 4 every row collapses onto the mean, 8 is fragile."""
SINKHORN_STEPS = 5
_EPSILON = 1e-12
_ROWS = 256
"""Rows of a map whose gradient is made at a time: what they need stays in the processor's cache."""


class UnitMap:
    """How each target unit is made of source units: a row of P; with heads, P is between heads of `width` rows each.

    P is shared out: each target unit is a mixture of source units, and every source unit is in some of them. Shapes:
    queries (t, d), keys (l, d), both with `width` rows a head. Equation: P = softmax_row(Sinkhorn₅(Z)), Z = Q Kᵀ;
    between heads, Z is the sum over their rows. Of the source only the heads `filled` take part, if any are named.
    """

    def __init__(self, queries_td: Tensor, keys_ld: Tensor, width: int = 1, filled: Tensor | None = None) -> None:
        self._width, self._filled = width, filled
        queries, keys = queries_td.reshape(len(queries_td) // width, -1), self._heads(keys_ld)
        self._pulls: list[_Pull] = []
        self.P, self._graph = _SharedOut.apply(self._pulls, queries, keys)  # type: ignore[no-untyped-call]

    def mixed(self, Y_lk: Tensor) -> Tensor:
        """Source rows expressed in target units: P Y, heads moved whole. Shapes: (l, k) → (t, k)."""
        heads = self._heads(Y_lk)
        mixed: Tensor = _Mixed.apply(self._pulls, self.P, self._graph, heads)  # type: ignore[no-untyped-call]
        return mixed.view(-1, Y_lk.shape[1])

    def _heads(self, Y_lk: Tensor) -> Tensor:
        heads = Y_lk.reshape(len(Y_lk) // self._width, -1)
        return heads if self._filled is None else heads[self._filled.to(heads.device)]


def attention_map(X_tr: Tensor, Y_lr: Tensor, columns: int, width: int = 1, filled: Tensor | None = None) -> UnitMap:
    """How each target unit is made of source units, by attention.

    `X_tr` is X̂ Kᵀ, the target's rows in the coordinates of the source's factor, and Y_lr K = Ŷ. Equation:
    Z = τ X̂ Kᵀ Y_lrᵀ / d; between heads, the mean over their rows.
    """
    return UnitMap(TEMPERATURE / (columns * width) * X_tr, Y_lr, width, filled)


Factors = tuple[Tensor, Tensor, Tensor]
"""What makes a move: a (t), C (t, r) and N (r, d)."""


class Moved:
    """A weight that a transfer moves: X' = diag(a) X + C N, and the way back for the loss's gradient."""

    def __init__(self, view: WeightView, squares_t: Tensor) -> None:
        self.view = view
        self.squares_t = squares_t.requires_grad_()

    def settle(self, factors: Factors) -> None:
        """Take the factors of the move, without their graph, of which this is a part."""
        self._a_t, self._C_tr, self._N_rd = (factor.detach() for factor in factors)

    def write_(self) -> None:
        """Make the move: from here on the weight is X'."""
        self.view.scale_add_(self._a_t, self._C_tr, self._N_rd)

    def keep(self, G_tk: Tensor, K_kd: Tensor) -> Tensor:
        """Keep the gradient of the product X Kᵀ for `give_gradient_`; returns it for rows of X', (1/a) G."""
        self._G_tk, self._K_kd = G_tk, K_kd
        return G_tk / self._a_t[:, None]

    def less_moved(self, GX_kd: Tensor, scaled_tk: Tensor) -> Tensor:
        """Gᵀ X from (1/a) G and its product with X': the gradient of a product for K."""
        return GX_kd - (scaled_tk.T @ self._C_tr) @ self._N_rd

    def gradient_products(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `gradients` needs of the gradient at X', G: rows of G∘X', G Nᵀ and Cᵀ G."""
        return self.view.grad_dots(), self.view.grad_left(self._N_rd.T), self.view.grad_right(self._C_tr)

    def gradients(self, dots_t: Tensor, GN_tr: Tensor, CG_rd: Tensor) -> Factors:
        """The loss's gradient for a, C and N: rows of G∘X, G Nᵀ and Cᵀ G."""
        return (dots_t - (GN_tr * self._C_tr).sum(dim=1)) / self._a_t, GN_tr, CG_rd

    def give_gradient_(self, squares_t: Tensor) -> None:
        """Turn the gradient at X' into the one at X, with `squares_t` the gradient for X's row norms.

        Equation: diag(a) G + 2 diag(squares) X + G_k K over the product with K, X = diag(1/a) (X' − C N); the last rows
        of K are N.
        """
        scale_t = 2 * squares_t / self._a_t
        B_tk = self._G_tk.clone()
        B_tk[:, -len(self._N_rd) :] -= scale_t[:, None] * self._C_tr
        self.view.grad_combine_(self._a_t, scale_t, B_tk, self._K_kd)


@dataclass(frozen=True)
class _Pull:
    """The gradient for a map from one product with it, O = P Y: that of P is D Yᵀ, which is not made."""

    D_tk: Tensor
    Y_lk: Tensor
    row_sums_t: Tensor
    """Of P∘(D Yᵀ), as D∘O has them."""
    column_sums_l: Tensor
    """As (Pᵀ D)∘Y has them."""


class _SharedOut(torch.autograd.Function):
    """softmax_row(Sinkhorn₅(Z)) of Z = Q Kᵀ, in the one matrix of its size that is ever made: E = exp(Z), then P.

    Equations: v₀ = 1, u_k = 1 / (E v_{k−1}), v_k = 1 / (Eᵀ u_k), P = diag(u₆) E diag(v₅). With a_k and b_k the
    gradients of E v_{k−1} and Eᵀ u_k, that of Z is P∘G + E∘(Σ a_k v_{k−1}ᵀ + Σ u_k b_kᵀ), where G is told in factors
    and E is P by rows over u₆ and by columns over v₅. A shift of a row of Z changes nothing, and |Z| is near τ at most,
    so that exp(Z) does not run out of exponents.
    """

    @staticmethod
    def forward(ctx: Any, pulls: list[_Pull], queries_td: Tensor, keys_ld: Tensor) -> tuple[Tensor, Tensor]:
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
        ctx.set_materialize_grads(False)  # one for P would be as large as P
        ctx.pulls, ctx.u_t, ctx.v_l = pulls, u_t, v_l
        return P_tl, E_tl.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor, __: Tensor) -> tuple[None, Tensor, Tensor]:
        queries_td, keys_ld, P_tl = ctx.saved_tensors
        u_t, v_l = ctx.u_t, ctx.v_l
        last_u_t, last_v_l = u_t[-1], v_l[-1]
        a_t, b_l = [-sum(pull.row_sums_t for pull in ctx.pulls) * last_u_t], []
        from_P_l = sum(pull.column_sums_l for pull in ctx.pulls) / last_v_l
        for step in range(SINKHORN_STEPS, 0, -1):
            to_columns_l = P_tl.T @ (a_t[-1] / last_u_t) / last_v_l
            b_l.append(-(from_P_l + to_columns_l) * v_l[step] ** 2)
            a_t.append(-(P_tl @ (b_l[-1] / last_v_l)) / last_u_t * u_t[step - 1] ** 2)
            from_P_l = torch.zeros_like(from_P_l)
        left_tk = torch.stack([*reversed(a_t), *u_t[:-1]], dim=1) / last_u_t[:, None]
        right_lk = torch.stack([*v_l, *reversed(b_l)], dim=1) / last_v_l[:, None]
        left_tk = torch.cat([*(pull.D_tk for pull in ctx.pulls), left_tk], dim=1)
        right_lk = torch.cat([*(pull.Y_lk for pull in ctx.pulls), right_lk], dim=1)
        GQ_td, GK_ld = torch.empty_like(queries_td), torch.zeros_like(keys_ld)
        for start in range(0, len(P_tl), _ROWS):
            rows = slice(start, start + _ROWS)
            GZ_bl = (left_tk[rows] @ right_lk.T).mul_(P_tl[rows])
            GQ_td[rows] = GZ_bl @ keys_ld
            GK_ld.addmm_(GZ_bl.T, queries_td[rows])
        return None, GQ_td, GK_ld


class _Mixed(torch.autograd.Function):
    """P Y for a map P whose gradient `_SharedOut` takes from what is left in `pulls`."""

    @staticmethod
    def forward(ctx: Any, pulls: list[_Pull], P_tl: Tensor, _: Tensor, Y_lk: Tensor) -> Tensor:
        O_tk = P_tl @ Y_lk
        ctx.pulls = pulls
        ctx.save_for_backward(P_tl, Y_lk, O_tk)
        return O_tk

    @staticmethod
    def backward(ctx: Any, D_tk: Tensor) -> tuple[None, None, Tensor, Tensor]:
        P_tl, Y_lk, O_tk = ctx.saved_tensors
        PD_lk = P_tl.T @ D_tk
        ctx.pulls.append(_Pull(D_tk, Y_lk.detach(), torch.linalg.vecdot(D_tk, O_tk), torch.linalg.vecdot(PD_lk, Y_lk)))
        return None, None, D_tk.new_zeros(()), PD_lk


class _Products(torch.autograd.Function):
    """X Kᵀ for weights X that are only there in pieces, and that are others when the gradient comes."""

    @staticmethod
    def forward(ctx: Any, weights: Sequence[Moved], *keys_kd: Tensor) -> tuple[Tensor, ...]:
        ctx.weights, ctx.keys_kd = weights, [K_kd.detach() for K_kd in keys_kd]
        with together():
            return tuple(moved.view.left(K_kd.T) for moved, K_kd in zip(weights, ctx.keys_kd, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients_tk: Tensor) -> tuple[Tensor | None, ...]:
        asked = zip(ctx.weights, gradients_tk, ctx.keys_kd, strict=True)
        scaled = [moved.keep(G_tk, K_kd) for moved, G_tk, K_kd in asked]
        with together():
            found = [moved.view.right(G_tk) for moved, G_tk in zip(ctx.weights, scaled, strict=True)]
        parts = zip(ctx.weights, found, scaled, strict=True)
        return None, *(moved.less_moved(GX_kd, G_tk) for moved, GX_kd, G_tk in parts)


def products(weights: Sequence[Moved], keys_kd: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """X Kᵀ of each weight as it was before the move, in the graph of K. Shapes: (k, d) → (t, k)."""
    found: tuple[Tensor, ...] = _Products.apply(weights, *keys_kd)  # type: ignore[no-untyped-call]
    return found


def asked_of(A_rd: Tensor, value_rd: Tensor, key_rd: Tensor | None) -> Tensor:
    """The rows K that a move needs the product with, as `move` takes it."""
    N_rd = A_rd + value_rd
    return N_rd if key_rd is None else torch.cat([A_rd + key_rd, N_rd])


def move(
    moved: Moved,
    B_lr: Tensor,
    A_rd: Tensor,
    products_tk: Tensor,
    *,
    value_rd: Tensor,
    gate: Tensor,
    key_rd: Tensor | None = None,
    unit_map: UnitMap | None = None,
    width: int = 1,
    filled: Tensor | None = None,
) -> tuple[Factors, UnitMap | None]:
    """The factors of a move of the target's units X towards the source's units Y = B A, and its map; writes nothing.

    `products_tk` is X Kᵀ for K from `asked_of`. With `key_rd` the map P is made here, of heads of `width` rows, the
    source's those that are `filled`; else it is `unit_map`, or, without one, each unit has its own counterpart.
    Equations: Ŷ = D B A; P from X̂ and D B (A + key);
    M = rmsnorm(P D B (A + value)); X' = X + tanh(g)(rms(X)·M − X), then rms(X') ← rms(X), by rows.
    """
    columns = moved.view.shape[1]
    Y_lr = B_lr * _inverse_rms(B_lr, A_rd, columns)
    N_rd = A_rd + value_rd
    size_t1 = (moved.squares_t / columns + _EPSILON).sqrt()[:, None]
    XN_tr = products_tk[:, -len(N_rd) :]
    if key_rd is not None:
        unit_map = attention_map(products_tk[:, : len(N_rd)] / size_t1, Y_lr, columns, width, filled)
    C_tr = Y_lr if unit_map is None else unit_map.mixed(Y_lr)
    C_tr = C_tr * _inverse_rms(C_tr, N_rd, columns)
    open_ = torch.tanh(gate)
    C_tr = open_ * size_t1 * C_tr
    crossed_t = (C_tr * XN_tr).sum(dim=1)
    own_t = ((C_tr @ (N_rd @ N_rd.T)) * C_tr).sum(dim=1)
    squares_t = (1 - open_) ** 2 * moved.squares_t + 2 * (1 - open_) * crossed_t + own_t
    scale_t1 = size_t1 / (squares_t.clamp(min=0) / columns + _EPSILON).sqrt()[:, None]
    factors = ((1 - open_) * scale_t1)[:, 0], scale_t1 * C_tr, N_rd
    moved.settle(factors)
    return factors, unit_map


def _inverse_rms(B_lr: Tensor, A_rd: Tensor, columns: int) -> Tensor:
    """One over the root mean square of each row of B A, from the factors. Shapes: (l, 1)."""
    squares_l = ((B_lr @ (A_rd @ A_rd.T)) * B_lr).sum(dim=1)
    return (squares_l.clamp(min=0) / columns + _EPSILON).rsqrt()[:, None]
