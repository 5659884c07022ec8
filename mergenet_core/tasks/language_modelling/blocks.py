"""Texts as a language model reads them: joined and cut into blocks of one length, or one block per text.

Legend: n blocks, b blocks of a batch, t tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mergenet_core.models.processors import Tokenizer
from mergenet_core.tasks.data.ragged_tensor import Ragged, ragged

IGNORED = -100
"""The label of a token that is not to be predicted."""
READ_TEXTS = 1000
"""Texts that are held in the tokenizer's own form at a time."""


@dataclass(frozen=True)
class Blocks:
    """Blocks in which every token is predicted from those before it."""

    tokens: Ragged
    pad: int

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self.tokens)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids, mask, and the ids again as labels. Shapes: (b, longest)."""
        batch = self.tokens.padded(index_b, {"input_ids": self.pad})
        labels_bt = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return {**batch, "labels": labels_bt}

    def weights(self, index_b: Tensor) -> Tensor:
        """Tokens to predict: all but the first. Shapes: (b)."""
        return self.tokens.lengths_n[index_b] - 1

    def evaluation_order(self) -> Tensor:
        """Sorted by length."""
        return torch.argsort(self.tokens.lengths_n, stable=True)


@dataclass(frozen=True)
class MaskedBlocks:
    """Blocks of which a share of tokens is hidden: 80 % by the mask, 10 % by another token, 10 % left as they are.

    What is hidden follows from the seed and the example's number alone. As in BERT's own data each block stands
    several times in the split, every time with another mask.
    """

    tokens: Ragged
    pad: int
    mask: int
    vocabulary: int
    special: Tensor
    """Tokens that are never hidden."""
    seed: int
    share: float = 0.15
    duplicates: int = 1

    def __len__(self) -> int:
        """How many blocks there are, each as often as it is masked."""
        return len(self.tokens) * self.duplicates

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids with hidden ones, mask, and the hidden ids as labels. Shapes: (b, longest)."""
        batch, open_bt = self._unmasked(index_b)
        ids_bt = batch["input_ids"]
        labels_bt = torch.full_like(ids_bt, IGNORED)
        counts_b = self._hidden(open_bt)
        for row, (example, count) in enumerate(zip(index_b.tolist(), counts_b.tolist(), strict=True)):
            if count == 0:
                continue
            draw = np.random.default_rng((self.seed, example))
            hidden = torch.from_numpy(draw.choice(np.flatnonzero(open_bt[row]), count, replace=False))
            kind, others = draw.random(len(hidden)), draw.integers(self.vocabulary, size=len(hidden))
            labels_bt[row, hidden] = ids = ids_bt[row, hidden]
            ids = torch.where(torch.from_numpy(kind < 0.8), self.mask, ids)
            ids_bt[row, hidden] = torch.where(torch.from_numpy(kind >= 0.9), torch.from_numpy(others), ids)
        return {**batch, "labels": labels_bt}

    def weights(self, index_b: Tensor) -> Tensor:
        """Tokens to predict: those that are hidden. Shapes: (b)."""
        return self._hidden(self._unmasked(index_b)[1])

    def _unmasked(self, index_b: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Blocks with nothing hidden, and which of their tokens may be. Shapes: (b, longest)."""
        batch = self.tokens.padded(index_b % len(self.tokens), {"input_ids": self.pad})
        return batch, (batch["attention_mask"] > 0) & ~torch.isin(batch["input_ids"], self.special)

    def _hidden(self, open_bt: Tensor) -> Tensor:
        """How many tokens are hidden: the share of those that may be, at least one. Shapes: (b)."""
        open_b = open_bt.sum(dim=1)
        return (self.share * open_b.double()).round().long().clamp(min=1).minimum(open_b)

    def evaluation_order(self) -> Tensor:
        """Sorted by length."""
        return torch.argsort(self.tokens.lengths_n.repeat(self.duplicates), stable=True)


def packed(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Ragged:
    """Texts joined, each with the tokenizer's end token, and cut into blocks; the last block may be shorter."""
    closed = (torch.tensor(_closed(ids, tokenizer), dtype=torch.int32) for ids in _encoded(texts, tokenizer))
    ids_k = torch.cat([torch.empty(0, dtype=torch.int32), *closed])
    if len(ids_k) % length == 1:  # a single token at the end predicts nothing
        ids_k = ids_k[:-1]
    bounds = torch.arange(0, len(ids_k) + length, length).clamp(max=len(ids_k))
    return Ragged({"input_ids": ids_k}, bounds)


def truncated(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Ragged:
    """One block per text, cut at `length`; texts with fewer than two tokens are left out."""
    encoded = _encoded(texts, tokenizer, truncation=True, max_length=length)
    return ragged({"input_ids": torch.tensor(ids, dtype=torch.int32)} for ids in encoded if len(ids) > 1)


def _encoded(texts: Sequence[str], tokenizer: Tokenizer, **settings: object) -> Iterator[list[int]]:
    for start in range(0, len(texts), READ_TEXTS):
        yield from tokenizer(texts[start : start + READ_TEXTS], verbose=False, **settings)["input_ids"]


def _closed(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    ends = {tokenizer.sep_token_id, tokenizer.eos_token_id} - {None}
    if not ids or ids[-1] in ends or tokenizer.eos_token_id is None:
        return ids
    return [*ids, tokenizer.eos_token_id]
