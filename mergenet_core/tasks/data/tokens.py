"""Short texts as token ids, cut where they are longer than a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.models.processors import Encoding, Tokenizer
from mergenet_core.tasks.data.ragged_tensor import Ragged, ragged

READ_TEXTS = 1000
"""Texts that are held in the tokenizer's own form at a time."""


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, padded when they are batched."""

    ragged: Ragged
    padding: dict[str, int]
    """The value behind a text's end, for each input of the model."""

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.ragged)

    @property
    def lengths_n(self) -> Tensor:
        """Tokens of each text."""
        return self.ragged.lengths_n

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids and mask of these texts. Shapes: (b, longest)."""
        return self.ragged.padded(index_b, self.padding)


def tokenise(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Tokens:
    """Tokenise texts, cut at `max_length` tokens."""
    rows = []
    for start in range(0, len(texts), READ_TEXTS):
        encoded = tokenizer(list(texts[start : start + READ_TEXTS]), truncation=True, max_length=max_length)
        names = input_names(tokenizer, encoded)
        columns = zip(*(encoded[name] for name in names), strict=True)
        rows += [{name: torch.tensor(ids) for name, ids in zip(names, row, strict=True)} for row in columns]
    return Tokens(ragged(rows), padding(tokenizer))


def input_names(tokenizer: Tokenizer, encoded: Encoding) -> list[str]:
    """What a tokenizer makes for the model, other than the attention mask, which follows from the lengths."""
    return [name for name in tokenizer.model_input_names if name in encoded and name != "attention_mask"]


def padding(tokenizer: Tokenizer) -> dict[str, int]:
    """The value behind a text's end, for each input of the model."""
    return {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}


def text_settings(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Config values of a model from scratch that reads this tokenizer's tokens."""
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
