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

    def __init__(self, inputs: int, outputs: int, device: torch.device | None = None) -> None:
        size = 1 + inputs + outputs
        self._inputs = inputs
        self._sums = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, X_ni: Tensor, Y_no: Tensor, weights_n: Tensor | None = None) -> None:
        """Count examples in; `weights_n` is 0 for rows that are padding. Shapes: X (n, i), Y (n, o), weights (n)."""
        rows = torch.cat([X_ni.new_ones(len(X_ni), 1), X_ni, Y_no], dim=1).double()
        self._sums += (rows if weights_n is None else rows * weights_n.double()[:, None]).T @ rows

    def sum_over(self, sum_: Callable[[Tensor], Tensor]) -> Gram:
        """The same with the sums of all processes."""
        sum_(self._sums)
        return self

    def solve(self, ridge: float) -> Affine:
        """The ridge regression of the wanted outputs on the inputs, both centred.

        Equation: W = (S_xx + λ I)⁻¹ S_xy with the covariances S, λ = ridge · mean of S_xx's diagonal;
        b = mean y − W mean x.
        """
        split = 1 + self._inputs
        count = self._sums[0, 0]
        mean_x, mean_y = self._sums[0, 1:split] / count, self._sums[0, split:] / count
        S_ii = self._sums[1:split, 1:split] / count - torch.outer(mean_x, mean_x)
        S_io = self._sums[1:split, split:] / count - torch.outer(mean_x, mean_y)
        S_o = (self._sums[split:, split:].diagonal() / count - mean_y.square()).clamp_min(0)
        scale = S_ii.diagonal().mean().clamp_min(1e-30)
        W_io = torch.linalg.solve(S_ii + ridge * scale * torch.eye(len(S_ii), dtype=S_ii.dtype).to(S_ii.device), S_io)
        variance_o = ((S_ii @ W_io) * W_io).sum(0)
        left_o = S_o - 2 * (W_io * S_io).sum(0) + variance_o
        error = float(left_o.sum() / S_o.sum().clamp_min(1e-30))
        return Affine(W_io, mean_y - mean_x @ W_io, mean_y, variance_o, error)
