"""Language modelling: the next token of a text, or the tokens hidden in it.

Legend: b blocks of a batch, n blocks of a split, t tokens, v the vocabulary, p tokens to predict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import Processor
from mergenet_core.tasks.data.sampling import draw
from mergenet_core.tasks.data.tables import read, texts
from mergenet_core.tasks.language_modelling.blocks import IGNORED, Blocks, MaskedBlocks, packed, truncated
from mergenet_core.tasks.task import Batch, Examples, Outputs, TaskInputs

DUPLICATES = 10
"""Masks that a training block is seen under, as in BERT's own data."""
EVALUATION_SEED = 0
"""Validation and test are masked alike in every trial."""
NATS_MAX = 700.0
"""Beyond this a perplexity is no number any more."""


@dataclass(frozen=True)
class LanguageModelling:
    """A task whose answer is a token: cross entropy, token accuracy, and the perplexity beside it."""

    masked: bool
    """Hidden tokens in place of the next one."""
    train: Examples
    validation: Examples
    test: Examples
    processor: Processor
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    metric: str = "token_accuracy"
    targets: frozenset[str] = frozenset({"labels"})
    evaluation_batch: int = 1  # a forward pass gives a number for every token of the vocabulary at every place

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean cross entropy over the tokens to predict. Shapes: logits (b, t, v), labels (b, t)."""
        logits_btv, labels_bt = self._aligned(outputs["logits"], batch["labels"])
        told_bt = labels_bt != IGNORED
        total = torch.nn.functional.cross_entropy(logits_btv[told_bt].float(), labels_bt[told_bt], reduction="sum")
        return total / told_bt.sum().clamp(min=1)

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Of each block the tokens predicted rightly, the tokens to predict, and the sum of their entropies in nats.

        Shapes: (b, 3).
        """
        logits_btv, labels_bt = self._aligned(outputs["logits"], batch["labels"])
        rows = []
        for logits_tv, labels_t in zip(logits_btv, labels_bt, strict=True):  # one at a time: a vocabulary is wide
            told_t = labels_t != IGNORED
            logits_pv, labels_p = logits_tv[told_t].float(), labels_t[told_t]
            right = (logits_pv.argmax(dim=1) == labels_p).sum()
            entropy = torch.nn.functional.cross_entropy(logits_pv, labels_p, reduction="sum")
            rows.append(torch.stack([right.float(), told_t.sum().float(), entropy]))
        return torch.stack(rows)

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """The share of tokens predicted rightly, and exp of the mean entropy of a token."""
        right, told, nats = answers_n.double().sum(dim=0).tolist()
        perplexity = math.exp(min(nats / max(told, 1.0), NATS_MAX))
        return {self.metric: right / max(told, 1.0), "perplexity": perplexity}

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
    data, roots, field, tokenizer = inputs.data, inputs.roots, inputs.field, inputs.text_tokenizer
    mask = tokenizer.mask_token_id if masked else None
    if masked and mask is None:
        raise DataRefused(
            f"{field}: the tokenizer has no mask token, so nothing can be hidden; set mask_token in its config, "
            "or take causal-language-modelling"
        )
    train, test = (read(data, split, (data.text,), roots, field) for split in ("train", "test"))
    train_rows, held_rows = draw(data, len(train.rows), seed=inputs.seed, field=field)
    validation = train
    if data.validation is not None:
        validation = read(data, "validation", (data.text,), roots, field)
        held_rows = torch.arange(len(validation.rows))
    splits = {
        "train": (train, train_rows),
        "validation": (validation, held_rows),
        "test": (test, torch.arange(len(test.rows))),
    }
    examples: dict[str, Examples] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, (table, rows) in splits.items():
        cut = packed if data.blocks == "packed" else truncated
        tokens = cut(texts(table, data.text, rows), tokenizer, data.max_length)
        if len(tokens) == 0:
            raise DataRefused(
                f"{table.field}: no text has two tokens, so there is nothing to predict; give longer ones"
            )
        if mask is not None:
            learns = name == "train"
            examples[name] = MaskedBlocks(
                tokens,
                pad=tokenizer.pad_token_id,
                mask=mask,
                vocabulary=len(tokenizer),
                special=torch.tensor(tokenizer.all_special_ids),
                seed=inputs.seed if learns else EVALUATION_SEED,
                duplicates=DUPLICATES if learns else 1,
            )
        else:
            examples[name] = Blocks(tokens, pad=tokenizer.pad_token_id)
        facts[name] = {"examples": len(rows), "blocks": len(tokens), "sha256": table.sha256}
    facts["train"]["of"] = len(train.rows)
    return LanguageModelling(
        masked=masked,
        train=examples["train"],
        validation=examples["validation"],
        test=examples["test"],
        processor=tokenizer,
        settings={"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        facts=facts,
    )
