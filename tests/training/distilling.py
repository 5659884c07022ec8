"""Tasks whose outputs are distilled: tiny sources that the job trains, data, and unlabelled inputs without answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots
from tests.tasks.pictures import SIZE, write_captions, write_vqa
from tests.tasks.words import WORDS, squad_rows, write_squad, write_words
from tests.training.tiny import write_lines

WIDE = 0.5
"""The initial deviation of a source's weights, so that its outputs differ from input to input."""
_BERT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_WIDER = {"hidden_size": 24, "initializer_range": WIDE}
_IMAGE = {"patch_size": 4, "image_size": SIZE, "num_channels": 3}
_TEXT = {"max_position_embeddings": 64}
_VISION = {name: value for name, value in _BERT.items() if not name.endswith("prob")}
_GPT2 = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
_CLIP = {
    "model_type": "clip", "text_config": {**_VISION, **_TEXT}, "vision_config": {**_VISION, **_IMAGE},
    "projection_dim": 12,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A task with what a target and a source of it are built from."""

    task: str
    config: dict[str, Any]
    wider: dict[str, Any]
    data: dict[str, Any]
    pool: str


TEXTS = {"train": "texts.jsonl", "test": "held-out.jsonl", "max_length": 16, "blocks": "truncated"}
CASES = {
    case.task: case
    for case in (
        Case(
            "question-answering",
            {"model_type": "bert", **_BERT, **_TEXT},
            _WIDER,
            {"train": "train-v2.0.json", "test": "dev-v2.0.json", "max_length": 32},
            "questions.jsonl",
        ),
        Case("masked-language-modelling", {"model_type": "bert", **_BERT, **_TEXT}, _WIDER, TEXTS, "pool.jsonl"),
        Case(
            "causal-language-modelling",
            _GPT2,
            {"n_embd": 24, "initializer_range": WIDE, "vocab_size": len(WORDS) + 7},
            TEXTS,
            "pool.jsonl",
        ),
        Case(
            "visual-question-answering",
            {"model_type": "vilt", **_BERT, **_IMAGE, **_TEXT},
            _WIDER,
            {
                "train": "vqa/v2_OpenEnded_mscoco_train2014_questions.json",
                "test": "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
                "image_size": SIZE,
                "max_length": 16,
            },
            "vqa/v2_OpenEnded_mscoco_test2015_questions.json",
        ),
        Case(
            "image-text-retrieval",
            _CLIP,
            {"projection_dim": 16, "initializer_factor": 5.0},
            {
                "train": "coco/annotations/captions_train2017.json",
                "test": "coco/annotations/captions_val2017.json",
                "image_size": SIZE,
                "max_length": 16,
            },
            "coco/annotations/captions_test2017.json",
        ),
    )
}


def write_world(folder: Path) -> Roots:
    """The data of all cases, and a folder `words` with their tokenizer."""
    models, data = folder / "models", folder / "data"
    data.mkdir(parents=True)
    write_words(models / "words")
    write_squad(data / "train-v2.0.json", 16, 1)
    write_squad(data / "dev-v2.0.json", 4, 2)
    asked = [{name: row[name] for name in ("question", "context")} for row in squad_rows(8, 4)]
    write_lines(data / "questions.jsonl", asked)
    for name, count, seed in (("texts", 12, 3), ("held-out", 4, 5), ("pool", 8, 6)):
        rows = [row["context"].split() for row in squad_rows(count, seed)]
        write_lines(data / f"{name}.jsonl", [{"text": " ".join(row[: 4 + 3 * (n % 4)])} for n, row in enumerate(rows)])
    for subset, count, seed in (("train2014", 20, 1), ("val2014", 6, 2), ("test2015", 10, 3)):
        write_vqa(data / "vqa", subset, count, seed)
    (data / "vqa" / "v2_mscoco_test2015_annotations.json").unlink()
    for subset, count, seed in (("train2017", 20, 1), ("val2017", 6, 2), ("test2017", 10, 3)):
        write_captions(data / "coco", subset, count, seed)
    return Roots((models,), (data,))


def distilling_job(case: Case, *, pool: bool, **changes: Any) -> JobSpec:
    """A job with the arm `distill`, whose source is trained for a step; `changes` replace entries of the document."""
    distill: dict[str, Any] = {"weight": 0.6, "temperature": 2.0}
    unlabelled = {"unlabelled": case.pool} if pool else {}
    train = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 3, "checkpoint_every": 2}
    document = {
        "name": "distilling",
        "source": {
            "model": {"config": case.config | case.wider, "tokenizer": "words"},
            "data": case.data,
            "train": {"steps": 1, "batch_size": 4, "learning_rate": 1e-5},
        },
        "target": {"model": {"config": case.config}, "task": case.task, "data": case.data | unlabelled},
        "transfer": {"method": "project", "distill": distill | ({"pool_batch_size": 4} if pool else {})},
        "train": train,
        "arms": ["transfer", "control", "distill"],
    }
    return parse(document | changes)
