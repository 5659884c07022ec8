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


@dataclass(frozen=True)
class UnitMap:
    """How each target unit is made of source units: a row of P; with heads, P is between heads of `width` rows each."""

    P: Tensor
    width: int = 1

    def mixed(self, Y_lk: Tensor) -> Tensor:
        """Source rows expressed in target units: P Y, heads moved whole. Shapes: (l, k) → (t, k)."""
        Y_hwk = Y_lk.view(-1, self.width, Y_lk.shape[1])
        return torch.einsum("gh,hwk->gwk", self.P, Y_hwk).flatten(0, 1)


def attention_map(X_tr: Tensor, Y_lr: Tensor, columns: int, width: int = 1) -> UnitMap:
    """How each target unit is made of source units, every source unit being shared out.

    `X_tr` is X̂ Kᵀ, the target's rows in the coordinates of the source's factor, and Y_lr K = Ŷ. Equation:
    P = softmax_row(Sinkhorn₅(Z)), Z = τ X̂ Kᵀ Y_lrᵀ / d; between heads, the mean over their rows.
    """
    queries, keys = (rows.reshape(len(rows) // width, -1) for rows in (X_tr, Y_lr))
    P: Tensor = _SharedOut.apply(TEMPERATURE / (columns * width) * queries @ keys.T)  # type: ignore[no-untyped-call]
    return UnitMap(P, width)


class Moved:
    """A weight that a transfer moves: X' = diag(a) X + C N, and the way back for the loss's gradient."""

    def __init__(self, view: WeightView, squares_t: Tensor) -> None:
        self.view = view
        self.squares_t = squares_t.requires_grad_()
        self.map: UnitMap | None = None
        self._pulls: list[tuple[Tensor, Tensor]] = []

    def settle(self, a_t: Tensor, C_tr: Tensor, N_rd: Tensor) -> None:
        """Take the factors of the move, which carry the graph of the maps."""
        self.factors = (a_t, C_tr, N_rd)
        self._a_t, self._C_tr, self._N_rd = (factor.detach() for factor in self.factors)

    def write_(self) -> None:
        """Make the move: from here on the weight is X'."""
        self.view.scale_add_(self._a_t, self._C_tr, self._N_rd)

    def keep(self, G_tk: Tensor, K_kd: Tensor) -> Tensor:
        """Keep the gradient of a product until `give_gradient_`; returns it for rows of X', (1/a) G."""
        self._pulls.append((G_tk, K_kd))
        return G_tk / self._a_t[:, None]

    def less_moved(self, GX_kd: Tensor, scaled_tk: Tensor) -> Tensor:
        """Gᵀ X from (1/a) G and its product with X': the gradient of a product for K."""
        return GX_kd - (scaled_tk.T @ self._C_tr) @ self._N_rd

    def gradient_products(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `gradients` needs of the gradient at X', G: rows of G∘X', G Nᵀ and Cᵀ G."""
        return self.view.grad_dots(), self.view.grad_left(self._N_rd.T), self.view.grad_right(self._C_tr)

    def gradients(self, dots_t: Tensor, GN_tr: Tensor, CG_rd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss's gradient for a, C and N: rows of G∘X, G Nᵀ and Cᵀ G."""
        return (dots_t - (GN_tr * self._C_tr).sum(dim=1)) / self._a_t, GN_tr, CG_rd

    def give_gradient_(self, squares_t: Tensor) -> None:
        """Turn the gradient at X' into the one at X, with `squares_t` the gradient for X's row norms.

        Equation: diag(a) G + 2 diag(squares) X + Σ G_k K over the products, X = diag(1/a) (X' − C N).
        """
        scale_t = 2 * squares_t / self._a_t
        columns = [-scale_t[:, None] * self._C_tr, *(G_tk for G_tk, _ in self._pulls)]
        rows = [self._N_rd, *(K_kd for _, K_kd in self._pulls)]
        self.view.grad_combine_(self._a_t, scale_t, torch.cat(columns, dim=1), torch.cat(rows))


class _SharedOut(torch.autograd.Function):
    """softmax_row(Sinkhorn₅(Z)), from products of K = exp(Z) with vectors alone.

    Equations: v₀ = 1, u_k = 1 / (K v_{k−1}), v_k = 1 / (Kᵀ u_k), P = diag(u₆) K diag(v₅). With a_k and b_k the
    gradients of K v_{k−1} and Kᵀ u_k, that of Z is G∘P + K∘(Σ a_k v_{k−1}ᵀ + Σ u_k b_kᵀ). A shift of a row of Z changes
    nothing, and |Z| is near τ at most, so that exp(Z) does not run out of exponents.
    """

    @staticmethod
    def forward(ctx: Any, Z_tl: Tensor) -> Tensor:
        K_tl = (Z_tl - Z_tl.amax(dim=1, keepdim=True)).exp_()
        u_t, v_l = [], [K_tl.new_ones(K_tl.shape[1])]
        for _ in range(SINKHORN_STEPS):
            u_t.append(1 / (K_tl @ v_l[-1]))
            v_l.append(1 / (K_tl.T @ u_t[-1]))
        u_t.append(1 / (K_tl @ v_l[-1]))
        ctx.K_tl, ctx.u_t, ctx.v_l = K_tl, u_t, v_l
        return u_t[-1][:, None] * K_tl * v_l[-1]

    @staticmethod
    def backward(ctx: Any, G_tl: Tensor) -> Tensor:
        K_tl, u_t, v_l = ctx.K_tl, ctx.u_t, ctx.v_l
        GP_tl = G_tl * K_tl * u_t[-1][:, None] * v_l[-1]
        a_t, b_l = [-GP_tl.sum(dim=1) * u_t[-1]], []
        from_P_l = GP_tl.sum(dim=0) / v_l[-1]
        for step in range(SINKHORN_STEPS, 0, -1):
            b_l.append(-(from_P_l + K_tl.T @ a_t[-1]) * v_l[step] ** 2)
            a_t.append(-(K_tl @ b_l[-1]) * u_t[step - 1] ** 2)
            from_P_l = torch.zeros_like(from_P_l)
        left_tk = torch.stack([*reversed(a_t), *u_t[:-1]], dim=1)
        right_lk = torch.stack([*v_l, *reversed(b_l)], dim=1)
        result: Tensor = GP_tl.addcmul_(K_tl, left_tk @ right_lk.T)
        return result


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
) -> None:
    """Work out a move of the target's units X towards the source's units Y = B A; nothing is written yet.

    `products_tk` is X Kᵀ for K from `asked_of`. With `key_rd` the map P is made here, of heads of `width` rows; else it
    is `unit_map`, or, without one, each unit has its own counterpart. Equations: Ŷ = D B A; P from X̂ and D B (A + key);
    M = rmsnorm(P D B (A + value)); X' = X + tanh(g)(rms(X)·M − X), then rms(X') ← rms(X), by rows.
    """
    columns = moved.view.shape[1]
    Y_lr = B_lr * _inverse_rms(B_lr, A_rd, columns)
    N_rd = A_rd + value_rd
    size_t1 = (moved.squares_t / columns + _EPSILON).sqrt()[:, None]
    XN_tr = products_tk[:, -len(N_rd) :]
    if key_rd is not None:
        unit_map = attention_map(products_tk[:, : len(N_rd)] / size_t1, Y_lr, columns, width)
    C_tr = Y_lr if unit_map is None else unit_map.mixed(Y_lr)
    C_tr = C_tr * _inverse_rms(C_tr, N_rd, columns)
    open_ = torch.tanh(gate)
    C_tr = open_ * size_t1 * C_tr
    crossed_t = (C_tr * XN_tr).sum(dim=1)
    own_t = ((C_tr @ (N_rd @ N_rd.T)) * C_tr).sum(dim=1)
    squares_t = (1 - open_) ** 2 * moved.squares_t + 2 * (1 - open_) * crossed_t + own_t
    scale_t1 = size_t1 / (squares_t / columns + _EPSILON).sqrt()[:, None]
    moved.settle(((1 - open_) * scale_t1)[:, 0], scale_t1 * C_tr, N_rd)
    moved.map = unit_map


def _inverse_rms(B_lr: Tensor, A_rd: Tensor, columns: int) -> Tensor:
    """One over the root mean square of each row of B A, from the factors. Shapes: (l, 1)."""
    squares_l = ((B_lr @ (A_rd @ A_rd.T)) * B_lr).sum(dim=1)
    return (squares_l.clamp(min=0) / columns + _EPSILON).rsqrt()[:, None]
