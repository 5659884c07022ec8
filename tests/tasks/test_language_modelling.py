"""Texts become blocks, hidden tokens follow from the seed alone, and the metrics are those worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import load_tokenizer
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.language_modelling.blocks import IGNORED
from mergenet_core.tasks.language_modelling.task import DUPLICATES
from tests.tasks.examples import read_examples
from tests.tasks.words import THINGS, WORDS, write_words
from tests.training.tiny import text_rows, write_lines

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    write_words(tmp_path / "words")
    rows = [{"text": " ".join(THINGS[: 1 + row % 9])} for row in range(30)]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", rows[:4])
    return Roots((tmp_path,), (tmp_path,))


CAUSAL, MASKED = "causal-language-modelling", "masked-language-modelling"


def load(roots: Roots, *, masked: bool, seed: int = 0, **data: Any) -> Any:
    spec = DataSpec(**({"train": "train.jsonl", "test": "test.jsonl", "max_length": 8} | data))
    tokenizer = load_tokenizer(roots.models[0] / "words")
    return read_examples(MASKED if masked else CAUSAL, spec, roots, seed=seed, tokenizer=tokenizer)


def ids(*words: str) -> list[int]:
    return [WORDS.index(word) for word in words]


def test_packed_blocks_hold_the_texts_end_to_end(roots: Roots) -> None:
    test = load(roots, masked=False).test
    expected = [token for row in range(4) for token in [CLS, *ids(*THINGS[: 1 + row]), SEP]]
    batch = test.batch(torch.arange(len(test)))
    assert batch["input_ids"][batch["attention_mask"] == 1].tolist() == expected
    assert batch["attention_mask"].sum(dim=1).tolist() == [8, 8, len(expected) - 16]
    assert batch["labels"][batch["attention_mask"] == 0].eq(IGNORED).all()
    assert torch.equal(batch["labels"][0], batch["input_ids"][0])


def test_a_single_token_at_the_end_is_left_out(roots: Roots) -> None:
    write_lines(roots.data[0] / "test.jsonl", [{"text": " ".join(THINGS[:7])}])
    assert [len(load(roots, masked=False, max_length=length).test) for length in (8, 9, 4)] == [1, 1, 2]


def test_truncated_blocks_are_a_text_each(roots: Roots) -> None:
    task = load(roots, masked=False, blocks="truncated")
    batch = task.test.batch(torch.tensor([3, 0]))
    assert batch["input_ids"].tolist() == [[CLS, *ids(*THINGS[:4]), SEP], [CLS, *ids("cat"), SEP, 0, 0, 0]]
    assert int(task.train.tokens.lengths_n.max()) == 8
    assert task.data_summary["train"]["blocks"] == task.data_summary["train"]["examples"] == 24


def test_texts_are_held_out_before_they_are_packed(roots: Roots) -> None:
    rows = [{"text": f"{WORDS[5 + row]} " * 3} for row in range(20)]
    write_lines(roots.data[0] / "train.jsonl", rows)
    for seed in range(3):
        task = load(roots, masked=False, seed=seed)
        train, held = (set(split.tokens.columns_k["input_ids"].tolist()) for split in (task.train, task.validation))
        assert train & held == {CLS, SEP}
        assert (task.data_summary["train"]["examples"], task.data_summary["validation"]["examples"]) == (16, 4)
    # five texts of five tokens make three blocks of eight, and a token that is left out
    assert load(roots, masked=False, train_limit=5).data_summary["train"] | {"sha256": ""} == {
        "examples": 5, "of": 20, "blocks": 3, "sha256": "",
    }  # fmt: skip


def test_hidden_tokens_follow_from_seed_and_example_alone(roots: Roots) -> None:
    task = load(roots, masked=True)
    blocks = len(task.train) // DUPLICATES
    whole = task.train.batch(torch.arange(len(task.train)))
    one = load(roots, masked=True).train.batch(torch.tensor([blocks + 2, 1]))
    for name in ("input_ids", "labels"):
        assert torch.equal(one[name], whole[name][[blocks + 2, 1]])
    labels_n = whole["labels"].view(DUPLICATES, blocks, -1)
    assert len({tuple(rows.flatten().tolist()) for rows in labels_n}) == DUPLICATES, "every time another mask"
    other = load(roots, masked=True, seed=1)
    assert torch.equal(other.test.batch(torch.arange(3))["labels"], task.test.batch(torch.arange(3))["labels"]), (
        "the test split is masked alike in every trial"
    )


def test_what_is_hidden_is_a_share_and_never_special(roots: Roots) -> None:
    write_lines(roots.data[0] / "train.jsonl", [{"text": " ".join(THINGS * 30)} for _ in range(10)])
    train = load(roots, masked=True, max_length=128).train
    batch = train.batch(torch.arange(len(train)))
    plain = train.tokens.padded(torch.arange(len(train)) % len(train.tokens), {})["input_ids"]
    hidden = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][hidden], plain[hidden])
    assert not torch.isin(plain[hidden], torch.tensor([0, CLS, SEP])).any()
    assert torch.equal(batch["input_ids"][~hidden], plain[~hidden])
    open_n = (plain > MASK).sum(dim=1)
    assert torch.equal(hidden.sum(dim=1), (0.15 * open_n).round().long().clamp(min=1))
    now = batch["input_ids"][hidden]
    assert float((now == MASK).double().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((now == plain[hidden]).double().mean()) == pytest.approx(0.1 + 0.1 / len(WORDS), abs=0.03)


def test_the_next_token_is_measured_by_hand(roots: Roots) -> None:
    write_lines(roots.data[0] / "test.jsonl", [{"text": "cat dog"}, {"text": "cat"}])
    task = load(roots, masked=False, blocks="truncated")
    batch = task.test.batch(torch.tensor([0, 1]))  # CLS cat dog SEP, and CLS cat SEP with a pad
    logits = torch.zeros((2, 4, len(WORDS)))
    logits[0, 0, WORDS.index("cat")] = logits[0, 1, WORDS.index("cat")] = logits[1, 1, SEP] = math.log(41.0)
    # right with p = 41 / (V + 40); wrong with 1 / (V + 40); flat with 1 / V, and then the first word is the guess
    size = len(WORDS)
    nats = [
        -math.log(41 / (size + 40)),
        math.log(size + 40),
        math.log(size),
        math.log(size),
        -math.log(41 / (size + 40)),
    ]
    outputs = {"logits": logits}
    assert float(task.loss(outputs, batch)) == pytest.approx(sum(nats) / 5, abs=1e-6)
    found = task.measure(task.answers(outputs, batch), task.test)
    assert found["token_accuracy"] == pytest.approx(2 / 5, abs=1e-6)
    terms = task.terms(task.answers(outputs, batch), task.test)
    assert float(terms.mean()) == pytest.approx(2 / 5, abs=1e-6), "the token accuracy, not the mean of the blocks'"
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / 5), rel=1e-6)


def test_only_hidden_tokens_are_measured(roots: Roots) -> None:
    task = load(roots, masked=True, blocks="truncated")
    batch = task.test.batch(torch.arange(4))
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), len(WORDS)).float() * 50
    found = task.measure(task.answers({"logits": logits}, batch), task.test)
    assert found == pytest.approx({"token_accuracy": 1.0, "perplexity": 1.0})
    assert float(task.loss({"logits": logits}, batch)) == pytest.approx(0, abs=1e-6)
    nothing = {"labels": torch.full((1, 4), IGNORED)}
    assert float(task.loss({"logits": torch.zeros(1, 4, 9)}, nothing)) == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("blocks", ["packed", "truncated"])
def test_an_example_weighs_as_many_tokens_as_it_has_to_predict(roots: Roots, masked: bool, blocks: str) -> None:
    train = load(roots, masked=masked, blocks=blocks).train
    index = torch.arange(len(train))
    labels = train.batch(index)["labels"][:, 0 if masked else 1 :]
    assert train.weights(index).tolist() == (labels != IGNORED).sum(dim=1).tolist()


def test_what_cannot_be_learned_is_refused(roots: Roots) -> None:
    rows = [{"body": row["text"], "label": row["label"]} for row in text_rows(8, 1)]
    write_lines(roots.data[0] / "rows.jsonl", rows)
    with pytest.raises(
        DataRefused, match=r"target.data.test: rows.jsonl has no column 'text'; its columns are body, label"
    ):
        load(roots, masked=False, test="rows.jsonl")
    tokenizer = load_tokenizer(roots.models[0] / "words")
    tokenizer.mask_token = None
    with pytest.raises(DataRefused, match=r"no mask token, .* or take causal-language-modelling"):
        read_examples(MASKED, DataSpec(train="train.jsonl", test="test.jsonl"), roots, tokenizer=tokenizer)
