"""Whole trials over images and texts: trained, resumed, exported, with knowledge out of a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from mergenet_core.errors import SpecInvalid
from mergenet_core.jobs.document import parse
from mergenet_core.jobs.paths import Roots
from mergenet_core.jobs.plan import make_plan
from mergenet_core.training.seams import Interrupted
from tests.tasks.pictures import SIZE, write_captions, write_vqa
from tests.tasks.words import WORDS, write_words
from tests.training.tiny import BERT, Recorder, run

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
    for part, count, seed in (("train", 40, 1), ("val", 12, 2)):
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


@pytest.mark.parametrize(("task", "config", "data", "metric", "auto"), TASKS, ids=["vilt", "dual", "clip"])
def test_a_task_is_trained_resumed_bit_equal_and_exported(
    task: str, config: Any, data: Any, metric: str, auto: Any, tmp_path: Path, roots: Roots
) -> None:
    spec = job(task, config, data)
    made = make_plan(spec, roots, tmp_path, [])
    assert made.pairing is not None
    assert "vocabulary" in made.pairing.anchored_axes
    whole = run(spec, "transfer-0", tmp_path / "whole", roots)
    assert whole.metric == metric
    assert whole.last["test"] == whole.metrics[metric]
    assert whole.transferred_parameters > 0
    if task == "image-text-retrieval":
        assert whole.parameters == made.estimate.target_parameters
    with pytest.raises(Interrupted):
        run(spec, "transfer-0", tmp_path / "parts", roots, Recorder({3: "stop"}))
    parts = run(spec, "transfer-0", tmp_path / "parts", roots, attempt=2)
    assert (parts.last, parts.best, parts.metrics) == (whole.last, whole.best, whole.metrics)
    folders = [tmp_path / name / "trials" / "transfer-0" / "model" for name in ("whole", "parts")]
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    _, loaded = auto.from_pretrained(folders[0], output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folders[0]).vocab_size == len(WORDS)
    assert AutoImageProcessor.from_pretrained(folders[0], backend="pil").size == {"height": SIZE, "width": SIZE}
