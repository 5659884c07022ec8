"""Short texts as token ids, cut where they are longer than a model reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergenet_core.models.processors import Tokenizer
from mergenet_core.tasks.data.ragged_tensor import Ragged, ragged

READ_TEXTS = 1000
"""Texts that are held in the tokenizer's own form at a time."""


def tokenised(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> tuple[Ragged, dict[str, int]]:
    """The texts' tokens, and what stands behind an end when they are batched."""
    rows = []
    for start in range(0, len(texts), READ_TEXTS):
        encoded = tokenizer(list(texts[start : start + READ_TEXTS]), truncation=True, max_length=max_length)
        names = [name for name in tokenizer.model_input_names if name in encoded and name != "attention_mask"]
        columns = zip(*(encoded[name] for name in names), strict=True)
        rows += [{name: torch.tensor(ids) for name, ids in zip(names, row, strict=True)} for row in columns]
    return ragged(rows), {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
