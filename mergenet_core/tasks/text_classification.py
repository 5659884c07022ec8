"""Text classification: a text column and a label column become padded token ids.

Legend: b examples of a batch, n examples of a split, t tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.models.processors import Tokenizer
from mergenet_core.tasks.data.labels import Labelled, read_labelled
from mergenet_core.tasks.data.tables import read_table, texts
from mergenet_core.tasks.data.tokens import text_settings
from mergenet_core.tasks.data.unlabelled import read_unlabelled
from mergenet_core.tasks.task import Classification, TaskInputs


@dataclass(frozen=True)
class TokenExamples:
    """A split of texts, tokenised once; a batch is cut to its longest text."""

    inputs_nt: Mapping[str, Tensor]
    lengths_n: Tensor
    labels: Tensor | None
    """None for unlabelled texts."""
    texts: Sequence[str] = ()
    """The texts themselves; empty for unlabelled ones."""
    read: Sequence[str] = ()
    """The same as far as the model reads them, which cuts long ones."""

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.lengths_n)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids and mask, and labels where there are any. Shapes: (b, longest), labels (b)."""
        longest = int(self.lengths_n[index_b].max())
        inputs = {name: rows_nt[index_b, :longest] for name, rows_nt in self.inputs_nt.items()}
        return inputs if self.labels is None else {**inputs, "labels": self.labels[index_b]}

    def evaluation_order(self) -> Tensor:
        """Sorted by length."""
        return torch.argsort(self.lengths_n, stable=True)


def load_text_classification(inputs: TaskInputs) -> Classification:
    """The task's examples for one trial. Raises: `DataRefused`, `PathRefused`."""
    data, tokenizer = inputs.data, inputs.text_tokenizer
    splits, labels = read_labelled(inputs, data.text)

    def examples(split: Labelled, rows: Tensor) -> TokenExamples:
        return _tokenise(texts(split.table, data.text, rows), split.labels_n[rows], tokenizer, data.max_length)

    train, validation, test = splits.each(examples)
    pool = read_unlabelled(
        inputs, splits.map(lambda split: split.table), lambda name: read_table(inputs, name, (data.text,))
    )
    unlabelled = None
    if pool is not None:
        unlabelled = _tokenise(texts(pool.split, data.text, pool.rows), None, tokenizer, data.max_length)
    return Classification(
        labels=labels,
        train=train,
        validation=validation,
        test=test,
        processor=tokenizer,
        unlabelled=unlabelled,
        settings=text_settings(tokenizer),
        data_summary=splits.summary() | (pool.summary() if pool else {}),
    )


def _tokenise(texts: list[str], labels_n: Tensor | None, tokenizer: Tokenizer, max_length: int) -> TokenExamples:
    encoded = tokenizer(texts, truncation=True, max_length=max_length, padding="longest", return_tensors="pt")
    inputs_nt: dict[str, Tensor] = {name: encoded[name] for name in encoded}
    lengths_n = inputs_nt["attention_mask"].sum(dim=1).clamp(min=1)
    if labels_n is None:
        return TokenExamples(inputs_nt, lengths_n, None)
    read = list(texts)
    for index in (lengths_n == max_length).nonzero().flatten().tolist():
        read[index] = tokenizer.decode(inputs_nt["input_ids"][index].tolist(), skip_special_tokens=True)
    return TokenExamples(inputs_nt, lengths_n, labels_n, texts, read)
