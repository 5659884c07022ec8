"""Language modelling: the next token of a text, or the tokens hidden in it.

Legend: b blocks of a batch, n blocks of a split, t tokens, v the vocabulary, p tokens to predict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import Processor
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.data.ragged_tensor import Ragged
from mergenet_core.tasks.data.splits import read_splits
from mergenet_core.tasks.data.tables import Table, read_table, texts
from mergenet_core.tasks.data.tokens import text_settings
from mergenet_core.tasks.data.unlabelled import read_unlabelled
from mergenet_core.tasks.language_modelling.blocks import IGNORED, Blocks, MaskedBlocks, packed, truncated
from mergenet_core.tasks.task import Batch, Choices, Examples, Outputs, TaskInputs

DUPLICATES = 10
"""Copies of a training block, each with its own mask, as in BERT's data."""
EVALUATION_SEED = 0
"""The seed of the masks of validation and test, the same in every trial."""
NATS_MAX = 700.0
"""Above this a perplexity is not a finite number."""


@dataclass(frozen=True)
class LanguageModelling:
    """A task whose answer is a token: cross entropy, token accuracy and perplexity."""

    masked: bool
    """Whether hidden tokens are predicted, and not the next one."""
    train: Examples
    validation: Examples
    test: Examples
    processor: Processor
    settings: Mapping[str, int | None]
    data_summary: Mapping[str, SplitSummary]
    unlabelled: Examples | None = None
    labels: tuple[str, ...] = ()
    metric: str = TASKS["causal-language-modelling"].metric
    targets: frozenset[str] = frozenset({"labels"})
    row_outputs: tuple[str, ...] = ()
    evaluation_batch: int = 1  # logits are large: a number for every token of the vocabulary at every position

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean cross entropy over the tokens to predict. Shapes: logits (b, t, v), labels (b, t)."""
        logits_pv, labels_p = self._predicted(outputs, batch)
        return torch.nn.functional.cross_entropy(logits_pv, labels_p, reduction="sum") / max(1, len(labels_p))

    def choices(self, outputs: Outputs, batch: Batch) -> tuple[Choices, ...]:
        """A token of the vocabulary for each token to predict. Shapes: (p, v).

        A model may have more rows than the tokenizer has tokens, and another model another number of them.
        """
        logits_pv, labels_p = self._predicted(outputs, batch)
        return (Choices(logits_pv[:, : self.settings["vocab_size"]], labels_p),)

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """For each block: tokens predicted correctly, tokens to predict, and the sum of their entropies in nats.

        Shapes: (b, 3).
        """
        logits_btv, labels_bt = self._aligned(outputs["logits"], batch["labels"])
        rows = []
        for logits_tv, labels_t in zip(logits_btv, labels_bt, strict=True):  # one at a time: a vocabulary is wide
            predicted_t = labels_t != IGNORED
            logits_pv, labels_p = logits_tv[predicted_t].float(), labels_t[predicted_t]
            right = (logits_pv.argmax(dim=1) == labels_p).sum()
            entropy = torch.nn.functional.cross_entropy(logits_pv, labels_p, reduction="sum")
            rows.append(torch.stack([right.float(), predicted_t.sum().float(), entropy]))
        return torch.stack(rows)

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """The share of tokens predicted correctly, and exp of the mean entropy of a token."""
        right, predicted, nats = answers_n.double().sum(dim=0).tolist()
        perplexity = math.exp(min(nats / max(predicted, 1.0), NATS_MAX))
        return {self.metric: right / max(predicted, 1.0), "perplexity": perplexity}

    def terms(self, answers_n: Tensor, examples: Examples) -> Tensor:
        """Per block the tokens predicted correctly, divided by the mean number of tokens to predict. Shapes: (n)."""
        right_n, predicted_n, _ = answers_n.double().unbind(dim=1)
        return right_n / predicted_n.mean().clamp(min=1 / len(predicted_n))

    def _predicted(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_btv, labels_bt = self._aligned(outputs["logits"], batch["labels"])
        predicted_bt = labels_bt != IGNORED
        return logits_btv[predicted_bt].float(), labels_bt[predicted_bt]

    def _aligned(self, logits_btv: Tensor, labels_bt: Tensor) -> tuple[Tensor, Tensor]:
        return (logits_btv, labels_bt) if self.masked else (logits_btv[:, :-1], labels_bt[:, 1:])


def load_causal_language_modelling(inputs: TaskInputs) -> LanguageModelling:
    """The examples for one trial, each token to be predicted from those before it.

    Limits count texts, which are drawn before they are cut into blocks. Raises: `DataRefused`, `PathRefused`.
    """
    return _load(inputs, masked=False)


def load_masked_language_modelling(inputs: TaskInputs) -> LanguageModelling:
    """The examples for one trial, with hidden tokens to be predicted from all others.

    Limits count texts, which are drawn before they are cut into blocks. Raises: `DataRefused`, `PathRefused`.
    """
    return _load(inputs, masked=True)


def _load(inputs: TaskInputs, *, masked: bool) -> LanguageModelling:
    data, field, tokenizer = inputs.data, inputs.field, inputs.text_tokenizer
    mask = tokenizer.mask_token_id if masked else None
    if masked and mask is None:
        raise DataRefused(
            f"{field}: the tokenizer has no mask token, so nothing can be hidden; set mask_token in its config, "
            "or take causal-language-modelling"
        )

    def read(split: str) -> Table:
        return read_table(inputs, split, (data.text,))

    splits = read_splits(inputs, read)
    pool = read_unlabelled(inputs, splits, read)

    def blocks(table: Table, rows: Tensor) -> Ragged:
        cut = packed if data.blocks == "packed" else truncated
        tokens = cut(texts(table, data.text, rows), tokenizer, data.max_length)
        if len(tokens) == 0:
            raise DataRefused(
                f"{table.field}: no text has two tokens, so there is nothing to predict; give longer ones"
            )
        return tokens

    def examples(tokens: Ragged, *, seed: int, duplicates: int) -> Examples:
        if mask is None:
            return Blocks(tokens, pad=tokenizer.pad_token_id)
        return MaskedBlocks(
            tokens,
            pad=tokenizer.pad_token_id,
            mask=mask,
            vocabulary=len(tokenizer),
            special=torch.tensor(tokenizer.all_special_ids),
            seed=seed,
            duplicates=duplicates,
        )

    train, validation, test = splits.each(blocks)
    unlabelled = None if pool is None else blocks(pool.split, pool.rows)
    summary = splits.summary(blocks=(len(train), len(validation), len(test)))
    if pool is not None and unlabelled is not None:
        summary |= pool.summary(blocks=len(unlabelled))
    return LanguageModelling(
        masked=masked,
        train=examples(train, seed=inputs.seed, duplicates=DUPLICATES),
        validation=examples(validation, seed=EVALUATION_SEED, duplicates=1),
        test=examples(test, seed=EVALUATION_SEED, duplicates=1),
        processor=tokenizer,
        unlabelled=None if unlabelled is None else examples(unlabelled, seed=inputs.seed, duplicates=DUPLICATES),
        settings=text_settings(tokenizer),
        data_summary=summary,
    )
