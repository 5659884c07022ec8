"""A weight as a matrix W, wherever its entries are: what a transfer may ask of it, and what that costs.

Products come out whole on every process, for r·m or r·n numbers exchanged; changes are told by factors that every
process has, and are written without any exchange. No process ever holds a matrix whose entries are spread.

Shape suffixes: m rows, n columns, k any small number; for a piece, p rows that it touches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.jobs.parts import Form, matrix_shape
from mergenet_core.transfer.shards import Piece, Shard


@dataclass(frozen=True)
class WeightView:
    """A weight as an m × n matrix: a convolution is out × in·k·k, an embedding rows × stream, a vector one column."""

    shard: Shard
    form: Form = "matrix"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return matrix_shape(self.shard.shape, self.form)

    @property
    def device(self) -> torch.device:
        """Where products come out."""
        return self.shard.device

    def left(self, X_nk: Tensor) -> Tensor:
        """The product W X. Shapes: (n, k) → (m, k)."""
        return self._left(self.shard.held(), X_nk)

    def right(self, Y_mk: Tensor) -> Tensor:
        """The product Yᵀ W. Shapes: (m, k) → (k, n)."""
        return self._right(self.shard.held(), Y_mk)

    def squares(self) -> Tensor:
        """The sum of squares of each row. Shapes: (m)."""
        piece = self.shard.held()
        return self._row_sums(piece, piece.flat)

    def grad_left(self, X_nk: Tensor) -> Tensor:
        """The product G X with the gradient G of the weight. Shapes: (n, k) → (m, k)."""
        return self._left(self._gradient(), X_nk)

    def grad_right(self, Y_mk: Tensor) -> Tensor:
        """The product Yᵀ G. Shapes: (m, k) → (k, n)."""
        return self._right(self._gradient(), Y_mk)

    def grad_dots(self) -> Tensor:
        """The dot product of each row with its gradient. Shapes: (m)."""
        return self._row_sums(self.shard.held(), self.shard.gradient())

    def add_(self, B_mk: Tensor, A_kn: Tensor) -> None:
        """Add a low-rank change: W ← W + B A."""
        self.scale_add_(None, B_mk, A_kn)

    def scale_add_(self, a_m: Tensor | None, B_mk: Tensor, A_kn: Tensor) -> None:
        """Scale the rows and add a low-rank change: W ← diag(a) W + B A; None leaves the rows as they are."""
        with torch.no_grad():
            self.shard.write_(self._changed(self.shard.held(), a_m, B_mk, A_kn))
            for copy in self.shard.followers():
                copy.flat.copy_(self._changed(copy, a_m, B_mk, A_kn))

    def grad_combine_(self, a_m: Tensor | None, s_m: Tensor | None, B_mk: Tensor, A_kn: Tensor) -> None:
        """Change the gradient: G ← diag(a) G + diag(s) W + B A; None stands for ones in a, for zeros in s."""
        with torch.no_grad():
            flat = self._changed(self._gradient(), a_m, B_mk, A_kn)
            if s_m is not None:
                weight = self.shard.held()
                first, block_pn = self._block(weight)
                flat = flat + self._entries(weight, s_m[first : first + len(block_pn), None] * block_pn)
            self.shard.write_gradient_(flat)

    def write_rows_(self, rows_k: Tensor, values_kn: Tensor) -> None:
        """Replace some rows by the values given; each process writes what it holds of them."""
        with torch.no_grad():
            self.shard.write_(self._with_rows(self.shard.held(), rows_k, values_kn))
            for copy in self.shard.followers():
                copy.flat.copy_(self._with_rows(copy, rows_k, values_kn))

    def write_columns_(self, columns_k: Tensor, values_km: Tensor) -> None:
        """Replace some columns by the values given, a row of them each: for a weight kept inputs × outputs."""
        with torch.no_grad():
            self.shard.write_(self._with_columns(self.shard.held(), columns_k, values_km))
            for copy in self.shard.followers():
                copy.flat.copy_(self._with_columns(copy, columns_k, values_km))

    def _gradient(self) -> Piece:
        return Piece(self.shard.held().start, self.shard.gradient())

    def _left(self, piece: Piece, X_nk: Tensor) -> Tensor:
        first, block_pn = self._block(piece)
        if block_pn.shape[0] == self.shape[0] and self.shard.group is None:
            return block_pn @ X_nk.to(block_pn)
        result_mk = torch.zeros(self.shape[0], X_nk.shape[1], dtype=block_pn.dtype, device=block_pn.device)
        result_mk[first : first + len(block_pn)] = block_pn @ X_nk.to(block_pn)
        return self.shard.sum_(result_mk)

    def _right(self, piece: Piece, Y_mk: Tensor) -> Tensor:
        first, block_pn = self._block(piece)
        return self.shard.sum_(Y_mk[first : first + len(block_pn)].to(block_pn).T @ block_pn)

    def _row_sums(self, piece: Piece, others: Tensor) -> Tensor:
        first, products_pn = self._block(Piece(piece.start, piece.flat * others.to(piece.flat)))
        result_m = torch.zeros(self.shape[0], dtype=products_pn.dtype, device=products_pn.device)
        result_m[first : first + len(products_pn)] = products_pn.sum(dim=1)
        return self.shard.sum_(result_m)

    def _changed(self, piece: Piece, a_m: Tensor | None, B_mk: Tensor, A_kn: Tensor) -> Tensor:
        first, block_pn = self._block(piece)
        rows = slice(first, first + len(block_pn))
        kept_pn = block_pn if a_m is None else a_m[rows, None].to(block_pn) * block_pn
        return self._entries(piece, torch.addmm(kept_pn, B_mk[rows].to(block_pn), A_kn.to(block_pn)))

    def _with_rows(self, piece: Piece, rows_k: Tensor, values_kn: Tensor) -> Tensor:
        first, block_pn = self._block(piece)
        block_pn = block_pn.clone()
        mine = (rows_k >= first) & (rows_k < first + len(block_pn))
        block_pn[(rows_k[mine] - first).to(block_pn.device)] = values_kn[mine.to(values_kn.device)].to(block_pn)
        return self._entries(piece, block_pn)

    def _with_columns(self, piece: Piece, columns_k: Tensor, values_km: Tensor) -> Tensor:
        first, block_pn = self._block(piece)
        block_pn = block_pn.clone()
        block_pn[:, columns_k.to(block_pn.device)] = values_km.T[first : first + len(block_pn)].to(block_pn)
        return self._entries(piece, block_pn)

    def _block(self, piece: Piece) -> tuple[int, Tensor]:
        """The rows that a piece touches, and the number of the first; what others hold of them is zero."""
        n = self.shape[1]
        first = piece.start // n
        before = piece.start - first * n
        after = -(before + piece.flat.numel()) % n
        if piece.flat.numel() == 0:
            return 0, piece.flat.view(0, n)
        padded = torch.nn.functional.pad(piece.flat, (before, after)) if before or after else piece.flat
        return first, padded.view(-1, n)

    def _entries(self, piece: Piece, block_pn: Tensor) -> Tensor:
        """The piece's own entries of the rows that it touches."""
        before = piece.start % self.shape[1] if piece.flat.numel() else 0
        return block_pn.reshape(-1)[before : before + piece.flat.numel()]


def view_of(W: Tensor, form: Form = "matrix") -> WeightView:
    """The view of a tensor that is held whole."""
    return WeightView(Shard(W), form)
