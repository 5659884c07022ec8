"""Least squares from sums over examples, so that inputs never have to be in memory together.

Legend: n rows of examples, i inputs, o wanted outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """An affine map: y = x W + b, with the mean and variance of its outputs over the examples."""

    W_io: Tensor
    b_o: Tensor
    mean_o: Tensor
    variance_o: Tensor
    error: float
    """The share of the wanted outputs' variance that it leaves."""


class Gram:
    """Sums of inputs, wanted outputs and their products, in double precision."""

    def __init__(self, inputs: int, outputs: int = 0, device: torch.device | None = None) -> None:
        self._inputs = inputs
        self._sums = torch.zeros(1 + inputs, 1 + inputs + outputs, dtype=torch.float64, device=device)
        self._squares_o = torch.zeros(outputs, dtype=torch.float64, device=device)

    def add(self, X_ni: Tensor, Y_no: Tensor | None = None, weights_n: Tensor | None = None) -> None:
        """Count examples in; `weights_n` is 0 for rows that are padding. Shapes: X (n, i), Y (n, o), weights (n)."""
        X_n1i = torch.cat([X_ni.new_ones(len(X_ni), 1), X_ni], dim=1).double()
        rows = X_n1i if Y_no is None else torch.cat([X_n1i, Y_no.double()], dim=1)
        weighted = rows if weights_n is None else rows * weights_n.double()[:, None]
        self._sums += X_n1i.T @ weighted
        if Y_no is not None:
            self._squares_o += (weighted * rows)[:, 1 + self._inputs :].sum(0)

    def sum_over(self, sum_: Callable[[Tensor], Tensor]) -> Gram:
        """The same with the sums of all processes."""
        sum_(self._sums)
        sum_(self._squares_o)
        return self

    def moments(self, *, centred: bool = True) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the inputs, or their second moments about zero. Shapes: (i), (i, i)."""
        split = 1 + self._inputs
        mean_i = self._sums[0, 1:split] / self._sums[0, 0]
        second_ii = self._sums[1:, 1:split] / self._sums[0, 0]
        return mean_i, second_ii - torch.outer(mean_i, mean_i) if centred else second_ii

    def solve(self, ridge: float, *, intercept: bool = True) -> Affine:
        """The ridge regression of the wanted outputs on the inputs, both centred unless there is no intercept.

        Equation: W = (S_xx + λ I)⁻¹ S_xy with the covariances S, λ = ridge · mean of S_xx's diagonal;
        b = mean y − W mean x. Without an intercept S are second moments about zero and b is 0.
        """
        split = 1 + self._inputs
        count = self._sums[0, 0]
        mean_x, S_ii = self.moments(centred=intercept)
        mean_y = self._sums[0, split:] / count
        S_io = self._sums[1:, split:] / count
        variance_y = (self._squares_o / count - mean_y.square()).clamp_min(0)
        S_o = self._squares_o / count
        if intercept:
            S_io, S_o = S_io - torch.outer(mean_x, mean_y), variance_y
        rounding = 1e-10 * self._sums[1:, 1:split].diagonal().mean() / count  # of inputs that hardly vary
        scale = torch.maximum(S_ii.diagonal().mean(), rounding).clamp_min(1e-30)
        W_io = torch.linalg.solve(S_ii + ridge * scale * torch.eye(len(S_ii), dtype=S_ii.dtype).to(S_ii.device), S_io)
        fitted_o = ((S_ii @ W_io) * W_io).sum(0)
        left_o = S_o - 2 * (W_io * S_io).sum(0) + fitted_o
        error = float(left_o.sum() / variance_y.sum().clamp_min(1e-30))
        b_o = mean_y - mean_x @ W_io if intercept else torch.zeros_like(mean_y)
        return Affine(W_io, b_o, mean_y, fitted_o, error)
