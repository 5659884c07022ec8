"""Text classification: a text column and a label column become padded token ids.

Legend: b examples of a batch, n examples of a split, t tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.models.processors import Tokenizer
from mergenet_core.tasks.data.tables import Table, read_splits, texts
from mergenet_core.tasks.task import Classification, TaskInputs


@dataclass(frozen=True)
class TokenExamples:
    """A split of texts, tokenised once; a batch is cut to its longest text."""

    inputs_nt: Mapping[str, Tensor]
    lengths_n: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.labels)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids, mask and labels. Shapes: (b, longest), labels (b)."""
        longest = int(self.lengths_n[index_b].max())
        inputs = {name: rows_nt[index_b, :longest] for name, rows_nt in self.inputs_nt.items()}
        return {**inputs, "labels": self.labels[index_b]}

    def evaluation_order(self) -> Tensor:
        """Sorted by length."""
        return torch.argsort(self.lengths_n, stable=True)


def load_text_classification(inputs: TaskInputs) -> Classification:
    """The task's examples for one trial. Raises: `DataRefused`, `PathRefused`."""
    data, tokenizer = inputs.data, inputs.text_tokenizer
    splits = read_splits(data, data.text, inputs.roots, seed=inputs.seed, field=inputs.field)

    def examples(table: Table, rows: Tensor, labels_n: Tensor) -> TokenExamples:
        return _tokenise(texts(table, data.text, rows), labels_n[rows], tokenizer, data.max_length)

    return Classification(
        labels=splits.labels,
        train=examples(splits.train, splits.train_rows, splits.train_labels_n),
        validation=examples(splits.validation, splits.validation_rows, splits.validation_labels_n),
        test=examples(splits.test, torch.arange(len(splits.test_labels_n)), splits.test_labels_n),
        processor=tokenizer,
        settings={"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        facts=splits.facts(),
    )


def _tokenise(texts: list[str], labels_n: Tensor, tokenizer: Tokenizer, max_length: int) -> TokenExamples:
    encoded = tokenizer(texts, truncation=True, max_length=max_length, padding="longest", return_tensors="pt")
    inputs_nt: dict[str, Tensor] = {name: encoded[name] for name in encoded}
    return TokenExamples(inputs_nt, inputs_nt["attention_mask"].sum(dim=1).clamp(min=1), labels_n)
