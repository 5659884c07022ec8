"""A weight as a matrix W whose entries may be spread over processes: its products and its low-rank changes.

A product is complete on every process and costs r·m or r·n exchanged numbers. A change is given as factors that every
process has, and each process changes its own entries without any exchange. So no process ever holds a whole matrix
that is spread over several, and an exchange is linear in m + n, as the paper's re-encoding W = B A allows.

Shape suffixes: m rows, n columns, k any small number; for a block of the entries in a slice, p rows and q columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.architectures.axes import Form, matrix_shape
from mergenet_core.transfer.shards import FlatSlice, ReplicatedShard, TensorShard


@dataclass(frozen=True)
class WeightView:
    """A weight as an m × n matrix: a convolution is out × in·k·k, an embedding rows × stream, a vector one column."""

    shard: TensorShard
    form: Form = "matrix"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return matrix_shape(self.shard.shape, self.form)

    def left(self, X_nk: Tensor) -> Tensor:
        """The product W X. Shapes: (n, k) → (m, k)."""
        return self._left(self.shard.local(), X_nk)

    def right(self, Y_mk: Tensor) -> Tensor:
        """The product Yᵀ W. Shapes: (m, k) → (k, n)."""
        return self._right(self.shard.local(), Y_mk)

    def squares(self) -> Tensor:
        """The sum of squares of each row. Shapes: (m)."""
        entries = self.shard.local()
        return self._row_sums(entries, entries.flat)

    def grad_left(self, X_nk: Tensor) -> Tensor:
        """The product G X with the gradient G of the weight. Shapes: (n, k) → (m, k)."""
        return self._left(self._gradient(), X_nk)

    def grad_right(self, Y_mk: Tensor) -> Tensor:
        """The product Yᵀ G. Shapes: (m, k) → (k, n)."""
        return self._right(self._gradient(), Y_mk)

    def grad_dots(self) -> Tensor:
        """The dot product of each row with its gradient. Shapes: (m)."""
        return self._row_sums(self.shard.local(), self.shard.gradient())

    def add_(self, B_mk: Tensor, A_kn: Tensor) -> None:
        """Add a low-rank change: W ← W + B A."""
        self.scale_add_(None, B_mk, A_kn)

    def scale_add_(self, a_m: Tensor | None, B_mk: Tensor, A_kn: Tensor) -> None:
        """Scale the rows and add a low-rank change: W ← diag(a) W + B A; a of None is all ones."""
        with torch.no_grad():
            local = self.shard.local()
            self._change_(local, a_m, B_mk, A_kn)
            self.shard.write_(local.flat)
            for copy in self.shard.copies():
                self._change_(copy, a_m, B_mk, A_kn)

    def grad_combine_(self, a_m: Tensor | None, s_m: Tensor | None, B_mk: Tensor, A_kn: Tensor) -> None:
        """Change the gradient: G ← diag(a) G + diag(s) W + B A; a of None is all ones, s of None all zeros."""
        with torch.no_grad():
            gradient = self._gradient()
            self._change_(gradient, a_m, B_mk, A_kn, s_m)
            self.shard.write_gradient_(gradient.flat)

    def write_rows_(self, rows_k: Tensor, values_kn: Tensor) -> None:
        """Replace rows, each process in its own entries. Shapes: rows (k), values (k, n)."""
        with torch.no_grad():
            local = self.shard.local()
            for entries in (local, *self.shard.copies()):
                for rows, columns, block_pq in self._blocks(entries):
                    inside = (rows_k >= rows.start) & (rows_k < rows.stop)
                    block_pq[(rows_k[inside] - rows.start).to(block_pq.device)] = values_kn[
                        inside.to(values_kn.device), columns
                    ].to(block_pq)
            self.shard.write_(local.flat)

    def write_columns_(self, columns_k: Tensor, values_km: Tensor) -> None:
        """Replace columns, given as rows of values: for a weight stored inputs × outputs. Shapes: (k), (k, m)."""
        with torch.no_grad():
            local = self.shard.local()
            for entries in (local, *self.shard.copies()):
                for rows, columns, block_pq in self._blocks(entries):
                    inside = (columns_k >= columns.start) & (columns_k < columns.stop)
                    block_pq[:, (columns_k[inside] - columns.start).to(block_pq.device)] = values_km[
                        inside.to(values_km.device), rows
                    ].T.to(block_pq)
            self.shard.write_(local.flat)

    def _gradient(self) -> FlatSlice:
        return FlatSlice(self.shard.local().start, self.shard.gradient())

    def _left(self, entries: FlatSlice, X_nk: Tensor) -> Tensor:
        X_nk = X_nk.to(entries.flat)
        if self.shard.is_whole:
            return entries.flat.view(self.shape) @ X_nk
        result_mk = entries.flat.new_zeros(self.shape[0], X_nk.shape[1])
        for rows, columns, block_pq in self._blocks(entries):
            result_mk[rows] += block_pq @ X_nk[columns]
        return self.shard.sum_(result_mk)

    def _right(self, entries: FlatSlice, Y_mk: Tensor) -> Tensor:
        Y_mk = Y_mk.to(entries.flat)
        if self.shard.is_whole:
            return Y_mk.T @ entries.flat.view(self.shape)
        result_kn = entries.flat.new_zeros(Y_mk.shape[1], self.shape[1])
        for rows, columns, block_pq in self._blocks(entries):
            result_kn[:, columns] += Y_mk[rows].T @ block_pq
        return self.shard.sum_(result_kn)

    def _row_sums(self, entries: FlatSlice, others: Tensor) -> Tensor:
        result_m = entries.flat.new_zeros(self.shape[0])
        other_blocks = self._blocks(FlatSlice(entries.start, others.to(entries.flat)))
        for (rows, _, block_pq), (_, _, others_pq) in zip(self._blocks(entries), other_blocks, strict=True):
            result_m[rows] += torch.linalg.vecdot(block_pq, others_pq)
        return self.shard.sum_(result_m)

    def _change_(
        self, entries: FlatSlice, a_m: Tensor | None, B_mk: Tensor, A_kn: Tensor, s_m: Tensor | None = None
    ) -> None:
        """Scale and change entries in place: diag(a) · + B A, plus diag(s) W if `s_m` is given."""
        blocks = self._blocks(entries)
        for rows, columns, block_pq in blocks:
            if a_m is not None:
                block_pq.mul_(a_m[rows, None].to(block_pq))
            block_pq.addmm_(B_mk[rows].to(block_pq), A_kn[:, columns].to(block_pq))
        if s_m is not None:
            for (rows, _, block_pq), (_, _, weight_pq) in zip(blocks, self._blocks(self.shard.local()), strict=True):
                block_pq.addcmul_(s_m[rows, None].to(block_pq), weight_pq.to(block_pq))

    def _blocks(self, entries: FlatSlice) -> list[tuple[slice, slice, Tensor]]:
        """Entries as blocks of the matrix in the same memory: the end of a row, whole rows, the start of a row."""
        n = self.shape[1]
        blocks = []
        start = entries.start
        while start < entries.stop:
            row, column = divmod(start, n)
            rows = 1 if column else max(1, (entries.stop - start) // n)
            columns = min(n - column, entries.stop - start)
            flat = entries.flat.narrow(0, start - entries.start, rows * columns)
            blocks.append((slice(row, row + rows), slice(column, column + columns), flat.view(rows, columns)))
            start += rows * columns
        return blocks


def view_of(W: Tensor, form: Form = "matrix") -> WeightView:
    """The view of a tensor that this process holds whole."""
    return WeightView(ReplicatedShard(W), form)
