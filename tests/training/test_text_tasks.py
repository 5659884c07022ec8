"""Whole trials of question answering and language modelling: trained, resumed, exported, and across tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
)

from mergenet_core.model_files.read_model import inspect_model
from mergenet_core.models.loading import load_trained
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots
from tests.tasks.words import WORDS, squad_rows, write_reviews, write_squad, write_words
from tests.training.tiny import BERT, prepared, run, run_twice, write_lines

SIZES = {"vocab_size": len(WORDS), "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
CONFIG = {"model_type": "bert", "max_position_embeddings": 64, **BERT}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
SQUAD = {"train": "train-v2.0.json", "test": "dev-v2.0.json", "max_length": 48}
REVIEWS = {"train": "aclImdb/train", "test": "aclImdb/test", "max_length": 16}
TEXTS = {"train": "texts.jsonl", "test": "texts.jsonl", "max_length": 16}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("text")
    models, data = folder / "models", folder / "data"
    data.mkdir()
    torch.manual_seed(7)
    BertModel(BertConfig(hidden_size=32, num_hidden_layers=3, **SIZES)).save_pretrained(models / "source")
    write_words(models / "source")
    write_squad(data / "train-v2.0.json", 20, 1)
    write_squad(data / "dev-v2.0.json", 8, 2)
    write_lines(data / "texts.jsonl", [{"text": row["context"]} for row in squad_rows(20, 3)])
    for split in ("train", "test"):
        write_reviews(data / "aclImdb" / split, 10)
    return Roots((models,), (data,))


def job(task: str, data: dict[str, Any], config: dict[str, Any] = CONFIG, **changes: Any) -> Any:
    document = {
        "name": "text",
        "source": {"model": {"path": "source"}},
        "target": {"model": {"config": config}, "task": task, "data": data},
        "transfer": {"method": "project"},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 3, "checkpoint_every": 2},
    }
    return parse(document | changes)


TASKS = [
    ("question-answering", SQUAD, CONFIG, AutoModelForQuestionAnswering, "f1"),
    ("masked-language-modelling", TEXTS, CONFIG, AutoModelForMaskedLM, "token_accuracy"),
    ("causal-language-modelling", TEXTS, CONFIG | {"is_decoder": True}, AutoModelForCausalLM, "token_accuracy"),
]


@pytest.mark.parametrize(("task", "data", "config", "auto", "metric"), TASKS, ids=lambda value: str(value)[:12])
def test_a_task_is_trained_resumed_bit_equal_and_exported(
    task: str, data: dict[str, Any], config: dict[str, Any], auto: Any, metric: str, tmp_path: Path, roots: Roots
) -> None:
    spec = job(task, data, config)
    made = make_plan(spec, roots, tmp_path, [])
    whole, folder = run_twice(spec, tmp_path, roots)
    assert whole.metric == metric
    assert {metric} < set(whole.metrics)
    assert made.pairing is not None
    assert whole.transferred_parameters == made.pairing.transferable_parameters == 5664
    assert whole.parameters == made.estimate.target_parameters
    model, loaded = auto.from_pretrained(folder, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    task = prepared(spec, "control-0", tmp_path, roots).task
    batch = task.test.batch(torch.tensor([0, 1]))
    inputs = {name: rows for name, rows in batch.items() if name not in task.targets}
    with torch.no_grad():
        answers = task.answers(model.eval()(**inputs), batch)
    assert answers.isfinite().all()


def test_a_decoder_learns_language(tmp_path: Path, roots: Roots) -> None:
    spec = job("causal-language-modelling", TEXTS, GPT2, train={"steps": 40, "batch_size": 8, "learning_rate": 1e-2})
    result = run(spec, "control-0", tmp_path, roots)
    assert result.metrics["token_accuracy"] > 0.4
    assert result.metrics["perplexity"] < len(WORDS) / 2


def test_questions_are_learned(tmp_path: Path, roots: Roots) -> None:
    train = {"steps": 60, "batch_size": 16, "learning_rate": 3e-3}
    result = run(job("question-answering", SQUAD, train=train), "control-0", tmp_path, roots)
    assert result.metrics["f1"] > 0.3, "a third of the questions has no answer, so never answering scores 1/3"
    assert set(result.metrics) == {
        "exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1", "null_threshold",
    }  # fmt: skip


ACROSS = [
    ("question-answering", SQUAD, "text-classification", REVIEWS, "accuracy"),
    ("text-classification", REVIEWS, "question-answering", SQUAD, "f1"),
]


@pytest.mark.parametrize(("learned", "from_data", "task", "data", "metric"), ACROSS, ids=["squad-imdb", "imdb-squad"])
def test_a_source_of_another_task(
    learned: str, from_data: Any, task: str, data: Any, metric: str, tmp_path: Path, roots: Roots
) -> None:
    wider = CONFIG | {"hidden_size": 24, "num_hidden_layers": 3}
    source = {
        "model": {"config": wider, "tokenizer": "source"},
        "task": learned,
        "data": from_data,
        "train": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3},
    }
    spec = job(task, data, source=source)
    planned = make_plan(spec, roots, tmp_path, []).pairing
    assert planned is not None
    assert run(spec, "source", tmp_path, roots).metric == ("f1" if metric == "accuracy" else "accuracy")
    result = run(spec, "transfer-0", tmp_path, roots)
    assert result.metric == metric
    transfer = prepared(spec, "transfer-0", tmp_path, roots).transfer
    assert {pair.target for pair in transfer.pairing.pairs} == {pair.target for pair in planned.pairs}
    assert all(pair.target.startswith("bert.") for pair in planned.pairs), "heads of other tasks do not pair"


def test_a_head_for_spans_is_paired_with_that_of_a_source_of_the_same_task(tmp_path: Path, roots: Roots) -> None:
    wider = CONFIG | {"hidden_size": 24}
    source = {
        "model": {"config": wider, "tokenizer": "source"},
        "data": SQUAD,
        "train": {"steps": 2, "batch_size": 8, "learning_rate": 1e-3},
    }
    spec = job("question-answering", SQUAD, source=source)
    planned = make_plan(spec, roots, tmp_path, []).pairing
    assert planned is not None
    assert "qa_outputs.weight" in {pair.target for pair in planned.pairs}
    run(spec, "source", tmp_path, roots)
    assert inspect_model(tmp_path / "source").labels == ("start", "end")
    transfer = prepared(spec, "transfer-0", tmp_path, roots).transfer
    assert {pair.target for pair in transfer.pairing.pairs} == {pair.target for pair in planned.pairs}


@pytest.mark.parametrize(
    ("kind", "task", "labels", "head"),
    [
        (BertForQuestionAnswering, "question-answering", ("start", "end"), "qa_outputs.weight"),
        (BertForMaskedLM, "masked-language-modelling", (), "cls.predictions.transform.dense.weight"),
    ],
)
def test_a_pretrained_head_is_kept_and_a_missing_one_follows_the_seed(
    kind: Any, task: Any, labels: tuple[str, ...], head: str, tmp_path: Path, roots: Roots
) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, **SIZES | {"num_attention_heads": 2})
    saved = kind(config)
    saved.save_pretrained(tmp_path / "saved")
    kept = load_trained(tmp_path / "saved", task, labels, seed=3).state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in saved.state_dict().items())
    base = roots.models[0] / "source"
    first, again, other = (load_trained(base, task, labels, seed=seed).state_dict()[head] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
