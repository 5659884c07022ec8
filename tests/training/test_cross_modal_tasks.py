"""Whole trials over images and texts: trained, resumed, exported, with knowledge out of a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from mergenet_core.errors import DataRefused, ModelRefused, SpecInvalid
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots
from tests.tasks.pictures import SIZE, write_captions, write_vqa
from tests.tasks.words import WORDS, write_words
from tests.training.tiny import BERT, prepared, run, run_twice

IMAGE = {"patch_size": 4, "image_size": SIZE, "num_channels": 3}
TEXT = {"max_position_embeddings": 64}
VILT = {"model_type": "vilt", **BERT, **IMAGE, **TEXT}
DUAL = {
    "model_type": "vision-text-dual-encoder",
    "text_config": {"model_type": "bert", **BERT, **TEXT},
    "vision_config": {"model_type": "vit", **BERT, "patch_size": 4},
    "projection_dim": 12,
}
CLIP = {"model_type": "clip", "text_config": {**BERT, **TEXT}, "vision_config": {**BERT, **IMAGE}, "projection_dim": 12}
VQA = {
    "train": "vqa/v2_OpenEnded_mscoco_train2014_questions.json",
    "test": "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
    "image_size": SIZE,
    "max_length": 16,
}
COCO = {
    "train": "coco/annotations/captions_train2017.json",
    "test": "coco/annotations/captions_val2017.json",
    "image_size": SIZE,
    "max_length": 16,
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("crossmodal")
    models, data = folder / "models", folder / "data"
    sizes = {"vocab_size": len(WORDS), "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(7)
    config = BertConfig(hidden_size=32, num_hidden_layers=3, max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(models / "source")
    write_words(models / "source")
    for part, count, seed in (("train", 60, 1), ("val", 12, 2)):
        write_vqa(data / "vqa", f"{part}2014", count, seed)
        write_captions(data / "coco", f"{part}2017", count, seed)
    return Roots((models,), (data,))


def job(task: str, config: dict[str, Any], data: dict[str, Any], **changes: Any) -> Any:
    document = {
        "name": "cross-modal",
        "source": {"model": {"path": "source"}},
        "target": {"model": {"config": config}, "task": task, "data": data},
        "transfer": {"method": "project"},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 3, "checkpoint_every": 2},
    }
    return parse(document | changes)


TASKS = [
    ("visual-question-answering", VILT, VQA, "accuracy", AutoModelForVisualQuestionAnswering),
    ("image-text-retrieval", DUAL, COCO, "mean_recall", AutoModel),
    ("image-text-retrieval", CLIP, COCO, "mean_recall", AutoModel),
]
PAIRED = {
    "vilt": (
        "vilt.embeddings.text_embeddings.word_embeddings.weight",
        "vilt.encoder.layer.0.attention.attention.key.weight",
    ),
    "dual": (
        "text_model.embeddings.word_embeddings.weight",
        "text_model.encoder.layer.0.attention.output.LayerNorm.weight",
    ),
    "clip": (
        "text_model.embeddings.token_embedding.weight",
        "text_model.encoder.layers.0.self_attn.k_proj.weight",
    ),
}
"""Weights of each target that have a counterpart in the source."""
TRANSFERRED = {"vilt": 5936, "dual": 5936, "clip": 5632}
"""Parameters of each target that the source writes."""


@pytest.mark.parametrize(
    ("target", "task", "config", "data", "metric", "auto"),
    [(target, *case) for target, case in zip(TRANSFERRED, TASKS, strict=True)],
    ids=list(TRANSFERRED),
)
def test_a_task_is_trained_resumed_bit_equal_and_exported(
    target: str, task: str, config: Any, data: Any, metric: str, auto: Any, tmp_path: Path, roots: Roots
) -> None:
    spec = job(task, config, data)
    made = make_plan(spec, roots, tmp_path, [])
    assert made.pairing is not None
    assert "vocabulary" in made.pairing.anchored_axes
    paired = {pair.target for pair in made.pairing.pairs}
    assert set(PAIRED[target]) < paired
    whole, folder = run_twice(spec, tmp_path, roots)
    assert whole.metric == metric
    assert whole.transferred_parameters == made.pairing.transferable_parameters == TRANSFERRED[target]
    if task == "image-text-retrieval":
        assert whole.parameters == made.estimate.target_parameters
    _, loaded = auto.from_pretrained(folder, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).vocab_size == len(WORDS)
    assert AutoImageProcessor.from_pretrained(folder, backend="pil").size == {"height": SIZE, "width": SIZE}


LEARNED = [
    ("visual-question-answering", VILT, VQA, 1e-2, "other_accuracy", 0.6),
    ("image-text-retrieval", DUAL, COCO, 3e-3, "mean_recall", 0.6),
]


@pytest.mark.parametrize(("task", "config", "data", "rate", "metric", "least"), LEARNED, ids=["vilt", "dual"])
def test_a_task_is_learned(
    task: str, config: Any, data: Any, rate: float, metric: str, least: float, tmp_path: Path, roots: Roots
) -> None:
    train = {"steps": 150, "batch_size": 16, "learning_rate": rate, "warmup_steps": 10}
    result = run(job(task, config, data, train=train), "control-0", tmp_path, roots)
    # guessing among four colours reaches 1/4; among twelve images, a mean recall of (1 + 5 + 10) / 36
    assert result.metrics[metric] > least


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory, roots: Roots) -> list[Path]:
    """The exported model of each task's control."""
    folders = [tmp_path_factory.mktemp("control") for _ in TASKS]
    for folder, (task, config, data, *_) in zip(folders, TASKS, strict=True):
        run(job(task, config, data), "control-0", folder, roots)
    return [folder / "trials" / "control-0" / "model" for folder in folders]


def test_an_exported_model_can_be_a_target(controls: list[Path], tmp_path: Path, roots: Roots) -> None:
    for exported, (task, config, data, metric, _) in zip(controls, TASKS, strict=True):
        inside = Roots((*roots.models, exported.parent), roots.data)
        target = {"model": {"path": "model"}, "task": task, "data": data}
        spec = job(task, config, data, target=target)
        planned = make_plan(spec, inside, tmp_path, []).pairing
        assert planned is not None
        result = run(spec, "transfer-0", tmp_path / exported.parents[2].name, inside)
        assert result.metric == metric
        assert result.transferred_parameters == planned.transferable_parameters


def test_towers_and_head_of_a_source_of_the_same_task_are_paired(tmp_path: Path, roots: Roots) -> None:
    source = {
        "model": {"config": VILT | {"hidden_size": 24, "num_hidden_layers": 3}, "tokenizer": "source"},
        "data": VQA,
        "train": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3},
    }
    spec = job("visual-question-answering", VILT, VQA, source=source)
    assert run(spec, "source", tmp_path, roots).metric == "accuracy"
    transfer = prepared(spec, "transfer-0", tmp_path, roots).transfer
    paired = {pair.target for pair in transfer.pairing.pairs}
    assert {"classifier.3.weight", "vilt.embeddings.patch_embeddings.projection.weight"} <= paired


def test_the_text_embedding_of_a_causal_text_tower_is_that_of_the_last_token(controls: list[Path]) -> None:
    folder = controls[-1]
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert model.config.text_config.eos_token_id == WORDS.index("[SEP]")
    ids = tokenizer(["the cat is red", "the dog is blue"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        one, other = model.text_model(input_ids=ids).pooler_output
    assert not torch.allclose(one, other), "the first token, which sees no other, would be the same in both"


@pytest.mark.parametrize(("task", "config", "data"), [case[:3] for case in TASKS[:2]], ids=["vilt", "dual"])
def test_a_text_encoder_cannot_teach(task: str, config: Any, data: Any, tmp_path: Path, roots: Roots) -> None:
    spec = job(task, config, data, arms=["transfer", "control", "distill"])
    with pytest.raises(ModelRefused, match=f"source.model: model_type 'bert' cannot learn {task}"):
        make_plan(spec, roots, tmp_path, [])


@pytest.mark.parametrize("change", [{"resources": {"devices": 2}}, {"train": {"steps": 2, "micro_batches": 2}}])
def test_a_batch_of_retrieval_is_never_divided(change: Any) -> None:
    with pytest.raises(SpecInvalid, match="a batch must not be split"):
        job("image-text-retrieval", DUAL, COCO, **change)
    job("visual-question-answering", VILT, VQA, **change)


def with_tower(tower: str, **changes: Any) -> dict[str, Any]:
    return DUAL | {tower: DUAL[tower] | changes}


REFUSALS = [
    (with_tower("text_config", model_type="gpt2"), "model_type 'gpt2' is no tower of vision-text-dual-encoder"),
    (with_tower("vision_config", auto_map={"AutoModel": "x.y"}), "code of its own"),
    (with_tower("vision_config", image_size=16), "image_size is 16, the data's is 8"),
    (with_tower("text_config", hidden_size="wide"), "a size is not a positive whole number"),
    (with_tower("text_config", num_hidden_layers=5000), "text_config.num_hidden_layers: 5000 is more"),
    (DUAL | {"text_config": "bert"}, "text_config is 'bert'; it is the config of a tower"),
    (VILT, "model_type 'vilt' cannot learn image-text-retrieval; known are clip"),
]


@pytest.mark.parametrize(("config", "sentence"), REFUSALS, ids=range(len(REFUSALS)))
def test_the_plan_refuses_impossible_configs(config: Any, sentence: str, tmp_path: Path, roots: Roots) -> None:
    with pytest.raises((ModelRefused, SpecInvalid), match=sentence):
        make_plan(job("image-text-retrieval", config, COCO), roots, tmp_path, [])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (with_tower("text_config", hiden_size=8), "text_config.hiden_size: bert has no setting 'hiden_size'; did you"),
        (with_tower("vision_config", id2label={"0": "a"}), "vision_config.id2label is set by the service"),
        (with_tower("text_config", attn_implementation="x"), "text_config: attn_implementation replaces the layers"),
    ],
)
def test_settings_of_a_tower_are_checked_like_those_of_a_model(
    config: Any, sentence: str, tmp_path: Path, roots: Roots
) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        run(job("image-text-retrieval", config, COCO), "control-0", tmp_path, roots)


def test_the_plan_looks_for_the_files_that_belong_to_a_dataset(tmp_path: Path, roots: Roots) -> None:
    for name, sentence in (
        ("alone/v2_OpenEnded_mscoco_train2014_questions.json", "has no file of answers in its folder"),
        (
            "alone/deep/v2_OpenEnded_mscoco_test2014_questions.json",
            "the folder test2014 with the images of .* is neither",
        ),
    ):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True)
        path.write_text('{"questions": []}')
        if "deep" in name:
            path.with_name("v2_mscoco_test2014_annotations.json").write_text('{"annotations": []}')
        spec = job("visual-question-answering", VILT, VQA | {"train": name})
        with pytest.raises(DataRefused, match=sentence):
            make_plan(spec, Roots(roots.models, (*roots.data, tmp_path / "data")), tmp_path, [])
    with pytest.raises(DataRefused, match="has no column 'image'"):
        make_plan(job("image-text-retrieval", DUAL, COCO | {"train": VQA["train"]}), roots, tmp_path, [])
