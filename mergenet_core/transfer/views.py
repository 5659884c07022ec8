"""A weight as a matrix: the only code that reads or writes the storage of a target's weight.

Shape suffixes: m rows, n columns, r rank, k any small number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.jobs.anatomy import Form


@dataclass(frozen=True)
class WeightView:
    """A replicated weight as an m × n matrix: a convolution is out × in·k·k, an embedding rows × stream.

    A method that must not form the full matrix uses the products alone; a sharded weight answers the same ones.
    """

    weight: Tensor
    form: Form = "matrix"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix; a vector is one column."""
        W_mn = self.matrix()
        return W_mn.shape[0], W_mn.shape[1]

    def matrix(self) -> Tensor:
        """The full matrix, sharing the weight's storage, outside of any graph."""
        return as_matrix(self.weight.detach(), self.form)

    def gradient(self) -> Tensor:
        """The full gradient as a matrix, sharing its storage; zeros where the loss does not reach the weight."""
        if self.weight.grad is None:
            return torch.zeros_like(self.matrix())
        return as_matrix(self.weight.grad, self.form)

    def left(self, X_nk: Tensor) -> Tensor:
        """The product W X. Shapes: (n, k) → (m, k)."""
        return self.matrix() @ X_nk.to(self.weight)

    def right(self, Y_mk: Tensor) -> Tensor:
        """The product Yᵀ W. Shapes: (m, k) → (k, n)."""
        return Y_mk.to(self.weight).T @ self.matrix()

    def grad_left(self, X_nk: Tensor) -> Tensor:
        """The product G X with the gradient G of the weight. Shapes: (n, k) → (m, k)."""
        return self.gradient() @ X_nk.to(self.weight)

    def grad_right(self, Y_mk: Tensor) -> Tensor:
        """The product Yᵀ G with the gradient G of the weight. Shapes: (m, k) → (k, n)."""
        return Y_mk.to(self.weight).T @ self.gradient()

    def add_(self, B_mr: Tensor, A_rn: Tensor) -> None:
        """Add a low-rank change: W ← W + B A."""
        with torch.no_grad():
            self.matrix().addmm_(B_mr.to(self.weight), A_rn.to(self.weight))

    def write_(self, W_mn: Tensor) -> None:
        """Replace the weight's entries: W ← the matrix given."""
        with torch.no_grad():
            self.matrix().copy_(W_mn)

    def replace_gradient_(self, G_mn: Tensor) -> None:
        """Replace the weight's gradient by the matrix given."""
        self.weight.grad = G_mn.detach().reshape(self.weight.shape).to(self.weight).clone()


def as_matrix(W: Tensor, form: Form) -> Tensor:
    """A weight of any number of axes as a matrix, without copying it."""
    if form == "embedding":
        return W.view(-1, W.shape[-1])
    return W.view(W.shape[0], -1)
