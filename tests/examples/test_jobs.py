"""Jobs across tasks and modalities run as they stand, smaller, on small files in the forms of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    MobileNetV2Config,
    MobileNetV2Model,
    ViltConfig,
    ViltForMaskedLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from mergenet_core.model_files.read_model import inspect_model
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots
from tests.tasks.cifar_files import write_cifar
from tests.tasks.pictures import write_captions, write_vqa
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
    BertModel(bert).save_pretrained(models / "all-minilm-l6")
    write_words(models / "all-minilm-l6")
    block = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    text = block | {"vocab_size": len(WORDS), "max_position_embeddings": 64, "eos_token_id": WORDS.index("[SEP]")}
    sight = block | {"image_size": 224, "patch_size": 32}
    for name, model, processor in (
        ("vilt-b32-mlm", ViltForMaskedLM(ViltConfig(**text | sight | {"image_size": 384})), ViltImageProcessorPil()),
        (
            "clip-vit-base-patch32",
            CLIPModel(CLIPConfig(text_config=text, vision_config=sight)),
            CLIPImageProcessorPil(),
        ),
    ):
        model.save_pretrained(models / name)
        processor.save_pretrained(models / name)
        write_words(models / name)
    for subset, count, seed in (("train2014", 60, 1), ("val2014", 6, 2)):
        write_vqa(data / "vqa", subset, count, seed)
        (data / "coco").mkdir(exist_ok=True)
        (data / "vqa" / subset).rename(data / "coco" / subset)
        write_vqa(data / "easy-vqa", subset, count, seed)
    for folder in ("coco", "stamps"):
        for subset, count, seed in (("train2017", 60, 1), ("val2017", 6, 2)):
            write_captions(data / folder, subset, count, seed)
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
    assert ("vocabulary" in plan.pairing.anchored_axes) == (plan.pairing.method != "lpka"), "lpka needs no such axis"
    if joint:
        result = run(job, "transfer-0", tmp_path, roots)
        learnt = tmp_path / "trials" / "transfer-0" / "source-model"
        assert inspect_model(learnt, job.source_task).labels is not None
    else:
        assert plan.trials[0].id == "source"
        assert run(job, "source", tmp_path, roots).metric == learned
        result = run(job, "transfer-0", tmp_path, roots)
    assert result.metric == metric
    assert result.transferred_parameters >= plan.pairing.transferable_parameters > 0, "the plan counts two labels"


def test_a_job_of_a_model_with_itself(tmp_path: Path, roots: Roots) -> None:
    document = yaml.safe_load((JOBS / "self-transfer.yaml").read_text())
    document["train"] = STEPS | {"learning_rate": float(document["train"]["learning_rate"])}
    job = parse(document)
    plan = make_plan(job, roots, tmp_path, [])
    assert plan.pairing is not None
    assert {entry.source for entry in plan.pairing.pairs} == {entry.target for entry in plan.pairing.pairs}
    assert not any(trial.kind == "source" for trial in plan.trials)
    result = run(job, "transfer-0", tmp_path, roots)
    assert result.transferred_parameters >= plan.pairing.transferable_parameters > 0, "the plan counts two labels"


CROSS_MODAL = [
    ("vqa-v2", "accuracy", AutoModelForVisualQuestionAnswering),
    ("mscoco-retrieval", "mean_recall", AutoModel),
    ("easy-vqa", "accuracy", AutoModelForVisualQuestionAnswering),
    ("stamps-retrieval", "mean_recall", AutoModel),
]


@pytest.mark.parametrize(("name", "metric", "auto"), CROSS_MODAL, ids=[name for name, _, _ in CROSS_MODAL])
def test_a_job_across_modalities(name: str, metric: str, auto: Any, tmp_path: Path, roots: Roots) -> None:
    document = yaml.safe_load((JOBS / f"{name}.yaml").read_text())
    document["train"] = STEPS | {"learning_rate": float(document["train"]["learning_rate"])}
    job = parse(document)
    plan = make_plan(job, roots, tmp_path, [])
    assert plan.pairing is not None
    words = any(axis.startswith("vocabulary") for axis in plan.pairing.anchored_axes)
    assert words == (plan.pairing.method != "lpka"), "lpka needs no such axis"
    result = run(job, "transfer-0", tmp_path, roots)
    assert result.metric == metric
    assert result.transferred_parameters >= plan.pairing.transferable_parameters > 0, "the plan counts two labels"
    if name != "stamps-retrieval":
        assert result.data["train"]["examples"] == 0.1 * result.data["train"]["of"]
    assert result.data["test"]["examples"] == (12 if metric == "accuracy" else 6), "the whole test set is measured"
    _, loaded = auto.from_pretrained(tmp_path / "trials" / "transfer-0" / "model", output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]


NARROW: dict[str, dict[str, object]] = {
    "source": {"embedding_size": 4, "hidden_sizes": [8, 12, 16, 24], "depths": [2, 1, 1, 1]},
    "target": {"depth_multiplier": 0.1, "finegrained_output": False},
}


@pytest.mark.parametrize("name", ["cifar-100", "fashion-cifar"])
def test_a_job_across_structures(name: str, tmp_path: Path, roots: Roots) -> None:
    document = yaml.safe_load((JOBS / f"{name}.yaml").read_text())
    folder, labels = Path(document["target"]["data"]["train"]).parent, 100 if name == "cifar-100" else 10
    for split, count in (("train", 120), ("test", 10)):
        write_cifar(roots.data[0] / folder / f"{split}.bin", count, len(split), labels)
    for part in (document, document["source"]):
        part["train"] |= STEPS
    document["transfer"]["cycle"] = 1
    if name == "cifar-100":
        for side, config in NARROW.items():
            document[side]["model"]["config"] |= config
    job = parse(document)
    plan = make_plan(job, roots, tmp_path, [])
    assert plan.pairing is not None
    paired = {entry.role for entry in plan.pairing.pairs}
    assert "stem.conv" in paired
    assert plan.trials[0].id == "source"
    control = run(job, "control-0", tmp_path, roots)
    run(job, "source", tmp_path, roots)
    result = run(job, "transfer-0", tmp_path, roots)
    assert result.parameters == control.parameters
    assert result.metric == "accuracy"
    assert result.transferred_parameters >= plan.pairing.transferable_parameters > 0, "the plan counts two labels"


def test_a_job_between_widths_of_one_structure(tmp_path: Path, roots: Roots) -> None:
    document = yaml.safe_load((JOBS / "mobilenet-to-fashion.yaml").read_text())
    MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.5)).save_pretrained(roots.models[0] / "mobilenet-v2")
    for split, count in (("train", 120), ("test", 10)):
        write_cifar(roots.data[0] / f"fashion-cifar/{split}.bin", count, len(split), 10)
    document["train"] |= STEPS
    document["transfer"]["method"] = "project"
    job = parse(document)
    plan = make_plan(job, roots, tmp_path, [])
    assert plan.pairing is not None
    assert set(plan.pairing.unpaired) == {"classifier.weight", "classifier.bias"}
    control, result = (run(job, trial, tmp_path, roots) for trial in ("control-0", "transfer-0"))
    assert result.transferred_parameters > 0.8 * control.parameters  # all but the head, of a hundred classes


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_file_is_valid_and_named_as_its_file(path: Path) -> None:
    job = parse(path.read_text())
    assert job.name == path.stem
    assert job.labels == {"example": path.stem}
