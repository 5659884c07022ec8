"""Jobs across tasks run as they stand, at a smaller size, on small files in the forms of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from mergenet_core.jobs.document import parse
from mergenet_core.jobs.inspect import inspect_model
from mergenet_core.jobs.paths import Roots
from mergenet_core.jobs.plan import make_plan
from tests.tasks.words import WORDS, write_reviews, write_squad, write_words
from tests.training.tiny import run, text_rows, write_lines

JOBS = Path(__file__).parents[2] / "examples"
STEPS = {"steps": 3, "batch_size": 8, "warmup_steps": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("examples")
    models, data = folder / "models", folder / "data"
    bert = BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    distil = DistilBertConfig(vocab_size=len(WORDS), dim=16, n_layers=2, n_heads=2, hidden_dim=24)
    for name, model in (("bert-base-uncased", BertModel(bert)), ("distilbert-base-uncased", DistilBertModel(distil))):
        model.save_pretrained(models / name)
        write_words(models / name)
    write_words(models / "all-minilm-l6")
    for name in ("squad", "wordnet", "bbc"):
        (data / name).mkdir(parents=True)
    for split, squad in (("train", "train-v2.0"), ("test", "dev-v2.0")):
        write_squad(data / "squad" / f"{squad}.json", 8, len(split))
        write_squad(data / "wordnet" / f"{split}.json", 8, len(split))
        write_reviews(data / "aclImdb" / split, 8)
        write_lines(data / "bbc" / f"{split}.jsonl", text_rows(30, len(split)))
    return Roots((models,), (data,))


@pytest.mark.parametrize(
    ("name", "learned", "metric"),
    [
        ("squad-to-imdb", "f1", "accuracy"),
        ("imdb-to-squad", "accuracy", "f1"),
        ("wordnet-to-bbc", "f1", "accuracy"),
        ("bbc-to-wordnet", "accuracy", "f1"),
        ("bbc-trajectory", "accuracy", "accuracy"),
    ],
)
def test_a_job_across_tasks(name: str, learned: str, metric: str, tmp_path: Path, roots: Roots) -> None:
    document = yaml.safe_load((JOBS / f"{name}.yaml").read_text())
    for part in (document, document["source"]):
        part["train"] = {key: value for key, value in part["train"].items() if key == "learning_rate"} | STEPS
        part["train"]["learning_rate"] = float(part["train"]["learning_rate"])
    if joint := document["source"].get("mode") == "joint":
        document["transfer"] |= {"cycle": 2, "back_cycle": 1}
    if "states" in document["source"]:
        document["source"]["states"] = 2
    job = parse(document)
    plan = make_plan(job, roots, tmp_path, [])
    assert plan.pairing is not None
    assert "vocabulary" in plan.pairing.anchored_axes
    if joint:
        result = run(job, "transfer-0", tmp_path, roots)
        learnt = tmp_path / "trials" / "transfer-0" / "source-model"
        assert inspect_model(learnt, job.source_task).labels is not None
    else:
        assert plan.trials[0].id == "source"
        assert run(job, "source", tmp_path, roots).metric == learned
        result = run(job, "transfer-0", tmp_path, roots)
    assert result.metric == metric
    assert result.transferred_parameters > 0


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_file_is_valid_and_named_as_its_file(path: Path) -> None:
    job = parse(path.read_text())
    assert job.name == path.stem
    assert job.labels == {"example": path.stem}
