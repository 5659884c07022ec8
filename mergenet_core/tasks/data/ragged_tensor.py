"""Sequences of different lengths, stored one after another and padded only when they are batched.

Legend: k tokens of all sequences, n sequences, b sequences of a batch, t tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Columns over the same sequences: a number or a row of numbers per token."""

    columns_k: Mapping[str, Tensor]
    bounds: Tensor
    """The start of each sequence and the end of the last one. Shapes: (n + 1)."""

    def __len__(self) -> int:
        """How many sequences there are."""
        return len(self.bounds) - 1

    @property
    def lengths_n(self) -> Tensor:
        """Tokens of each sequence."""
        return self.bounds.diff()

    def padded(self, index_b: Tensor, fill: Mapping[str, int]) -> dict[str, Tensor]:
        """The columns of these sequences, padded to the longest with `fill`, and an attention mask.

        Shapes: (b, t), a column of rows (b, t, …).
        """
        lengths_b = self.lengths_n[index_b]
        positions_t = torch.arange(int(lengths_b.max()))
        inside_bt = positions_t < lengths_b[:, None]
        found_bt = torch.where(inside_bt, self.bounds[index_b][:, None] + positions_t, 0)
        batch = {"attention_mask": inside_bt.long()}
        for name, column_k in self.columns_k.items():
            rows = column_k[found_bt]
            rows = rows if rows.dtype == torch.bool else rows.long()
            rows[~inside_bt] = fill.get(name, 0)
            batch[name] = rows
        return batch


def ragged(sequences: Iterable[Mapping[str, Tensor]]) -> Ragged:
    """Join sequences; each has the columns of the first."""
    held = list(sequences)
    if not held:
        return Ragged({}, torch.zeros(1, dtype=torch.long))
    lengths = [len(next(iter(sequence.values()))) for sequence in held]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return Ragged({name: torch.cat([sequence[name] for sequence in held]) for name in held[0]}, bounds)
