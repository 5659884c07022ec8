"""A weight as a matrix W, wherever its entries are: what a transfer may ask of it, and what that costs.

Products come out whole on every process, for r·m or r·n numbers exchanged; changes are told by factors that every
process has, and are written without any exchange. No process ever holds a matrix whose entries are spread.

Shape suffixes: m rows, n columns, k any small number; for a block of a piece, p rows and q columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.architectures.axes import Form, matrix_shape
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
            held = self.shard.held()
            self._change_(held, a_m, B_mk, A_kn)
            self.shard.write_(held.flat)
            for copy in self.shard.followers():
                self._change_(copy, a_m, B_mk, A_kn)

    def grad_combine_(self, a_m: Tensor | None, s_m: Tensor | None, B_mk: Tensor, A_kn: Tensor) -> None:
        """Change the gradient: G ← diag(a) G + diag(s) W + B A; None stands for ones in a, for zeros in s."""
        with torch.no_grad():
            gradient = self._gradient()
            self._change_(gradient, a_m, B_mk, A_kn, s_m)
            self.shard.write_gradient_(gradient.flat)

    def write_rows_(self, rows_k: Tensor, values_kn: Tensor) -> None:
        """Replace some rows by the values given; each process writes what it holds of them."""
        with torch.no_grad():
            held = self.shard.held()
            for piece in (held, *self.shard.followers()):
                for rows, columns, block_pq in self._blocks(piece):
                    mine = (rows_k >= rows.start) & (rows_k < rows.stop)
                    block_pq[(rows_k[mine] - rows.start).to(block_pq.device)] = values_kn[
                        mine.to(values_kn.device), columns
                    ].to(block_pq)
            self.shard.write_(held.flat)

    def write_columns_(self, columns_k: Tensor, values_km: Tensor) -> None:
        """Replace some columns by the values given, a row of them each: for a weight kept inputs × outputs."""
        with torch.no_grad():
            held = self.shard.held()
            for piece in (held, *self.shard.followers()):
                for rows, columns, block_pq in self._blocks(piece):
                    mine = (columns_k >= columns.start) & (columns_k < columns.stop)
                    block_pq[:, (columns_k[mine] - columns.start).to(block_pq.device)] = values_km[
                        mine.to(values_km.device), rows
                    ].T.to(block_pq)
            self.shard.write_(held.flat)

    def _gradient(self) -> Piece:
        return Piece(self.shard.held().start, self.shard.gradient())

    def _left(self, piece: Piece, X_nk: Tensor) -> Tensor:
        X_nk = X_nk.to(piece.flat)
        if self.shard.group is None:
            return piece.flat.view(self.shape) @ X_nk
        result_mk = piece.flat.new_zeros(self.shape[0], X_nk.shape[1])
        for rows, columns, block_pq in self._blocks(piece):
            result_mk[rows] += block_pq @ X_nk[columns]
        return self.shard.sum_(result_mk)

    def _right(self, piece: Piece, Y_mk: Tensor) -> Tensor:
        Y_mk = Y_mk.to(piece.flat)
        if self.shard.group is None:
            return Y_mk.T @ piece.flat.view(self.shape)
        result_kn = piece.flat.new_zeros(Y_mk.shape[1], self.shape[1])
        for rows, columns, block_pq in self._blocks(piece):
            result_kn[:, columns] += Y_mk[rows].T @ block_pq
        return self.shard.sum_(result_kn)

    def _row_sums(self, piece: Piece, others: Tensor) -> Tensor:
        result_m = piece.flat.new_zeros(self.shape[0])
        others_of = self._blocks(Piece(piece.start, others.to(piece.flat)))
        for (rows, _, block_pq), (_, _, others_pq) in zip(self._blocks(piece), others_of, strict=True):
            result_m[rows] += torch.linalg.vecdot(block_pq, others_pq)
        return self.shard.sum_(result_m)

    def _change_(self, piece: Piece, a_m: Tensor | None, B_mk: Tensor, A_kn: Tensor, s_m: Tensor | None = None) -> None:
        """Change a piece's entries in place; `s_m` scales the rows of the weight that are added."""
        blocks = self._blocks(piece)
        for rows, columns, block_pq in blocks:
            if a_m is not None:
                block_pq.mul_(a_m[rows, None].to(block_pq))
            block_pq.addmm_(B_mk[rows].to(block_pq), A_kn[:, columns].to(block_pq))
        if s_m is not None:
            for (rows, _, block_pq), (_, _, weight_pq) in zip(blocks, self._blocks(self.shard.held()), strict=True):
                block_pq.addcmul_(s_m[rows, None].to(block_pq), weight_pq.to(block_pq))

    def _blocks(self, piece: Piece) -> list[tuple[slice, slice, Tensor]]:
        """A piece as blocks of the matrix, which share its storage: the end of a row, whole rows, a row's beginning."""
        n = self.shape[1]
        blocks = []
        start = piece.start
        while start < piece.stop:
            row, column = divmod(start, n)
            rows = 1 if column else max(1, (piece.stop - start) // n)
            columns = min(n - column, piece.stop - start)
            flat = piece.flat.narrow(0, start - piece.start, rows * columns)
            blocks.append((slice(row, row + rows), slice(column, column + columns), flat.view(rows, columns)))
            start += rows * columns
        return blocks


def view_of(W: Tensor, form: Form = "matrix") -> WeightView:
    """The view of a tensor that is held whole."""
    return WeightView(Shard(W), form)
