"""A language model's step averages over its tokens: micro-batches and processes do not change the curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from mergenet_core.storage.paths import Roots
from tests.distributed.gang import farthest, run_alone, run_together
from tests.tasks.words import THINGS, WORDS, write_words
from tests.training.tiny import write_lines

CAUSAL, MASKED = "causal-language-modelling", "masked-language-modelling"
MODELS = {
    CAUSAL: {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    MASKED: {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}  # fmt: skip
STEPS = 6
TOLERANCE = 1e-6
ALONE = [("single", 2), ("single", 4)]
FAST = [("ddp", 2), ("zero2", 2)]
SLOW = [("ddp", 1), ("fsdp2", 2), ("zero3", 2)]

Curves = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """Texts of 1 to 12 words, so that micro-batches have different numbers of tokens."""
    folder = tmp_path_factory.mktemp("language")
    torch.manual_seed(7)
    sizes = {"vocab_size": len(WORDS), "num_attention_heads": 2, "max_position_embeddings": 16}
    BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, intermediate_size=24, **sizes)).save_pretrained(
        folder / "source"
    )
    write_words(folder / "source")
    rows = [{"text": " ".join((THINGS * 2)[row % 5 : row % 5 + 1 + (row * row) % 12])} for row in range(40)]
    write_lines(folder / "texts.jsonl", rows)
    return Roots((folder,), (folder,))


def entry(task: str, strategy: str, micro_batches: int, folder: Path) -> dict[str, Any]:
    devices = 1 if strategy == "single" else 2
    name = f"{task}-{strategy}-{micro_batches}"
    document = {
        "name": "tokens",
        "source": {"model": {"path": "source"}},
        "target": {
            "model": {"config": MODELS[task]},
            "task": task,
            "data": {"train": "texts.jsonl", "test": "texts.jsonl", "max_length": 12, "blocks": "truncated"},
        },
        "train": {
            "steps": STEPS, "batch_size": 8, "micro_batches": micro_batches, "learning_rate": 2e-3, "clip_norm": 0.5,
        },
        "resources": {"strategy": strategy, "devices": devices},
    }  # fmt: skip
    return {
        "name": name,
        "document": document,
        "trial": "control-0",
        "folder": str(folder / name),
    }


@pytest.fixture(scope="module")
def curves(language: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    work = tmp_path_factory.mktemp("curves")
    alone = [entry(task, *case, work) for task in MODELS for case in [("single", 1), *ALONE]]
    together = [entry(task, *case, work) for task in MODELS for case in FAST]
    return run_alone(alone, language) | run_together(2, together, language, work / "gang")


@pytest.fixture(scope="module")
def rest(language: Roots, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    work = tmp_path_factory.mktemp("rest")
    return run_together(2, [entry(task, *case, work) for task in MODELS for case in SLOW], language, work / "gang")


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize(("strategy", "micro_batches"), ALONE + FAST)
def test_a_divided_step_gives_the_curve_of_an_undivided_one(
    curves: Curves, task: str, strategy: str, micro_batches: int
) -> None:
    assert_same_curve(curves[f"{task}-{strategy}-{micro_batches}"], curves[f"{task}-single-1"])


@pytest.mark.slow
@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize(("strategy", "micro_batches"), SLOW)
def test_every_strategy_gives_the_curve_of_an_undivided_step(
    curves: Curves, rest: Curves, task: str, strategy: str, micro_batches: int
) -> None:
    assert_same_curve(rest[f"{task}-{strategy}-{micro_batches}"], curves[f"{task}-single-1"])


def assert_same_curve(found: dict[int, float], expected: dict[int, float]) -> None:
    assert len(found) == STEPS
    assert farthest(found, expected) <= TOLERANCE
