"""Real models, data and jobs that train in about a second."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import JsonValue
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from mergenet_core.records.job import Checkpoint, Trial, TrialResult
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import prepare_training
from mergenet_core.training.context import open_trial
from mergenet_core.training.loop import Training
from mergenet_core.training.trial import AttemptContext, Interrupted, run_trial

TOPICS = {"fruit": "apple pear plum fig", "tools": "saw drill axe file", "music": "drum harp bell horn"}
FILLERS = ["the", "a", "of", "and", "in", "on", "with", "more", "less", "some"]
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MLP = {"model_type": "mergenet-mlp", "image_size": 8, "num_channels": 1, "hidden_sizes": [12, 10]}
CNN = {"model_type": "mergenet-cnn", "channels": [4, 6], "kernel_size": 3}


def text_rows(count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        topic = draw.choice(list(TOPICS))
        words = draw.choices(FILLERS, k=draw.randint(2, 8)) + draw.choices(TOPICS[topic].split(), k=2)
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": topic})
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLERS, *" ".join(TOPICS.values()).split()]
    tokenizer = Tokenizer(models.WordPiece({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def write_bert(folder: Path, labels: tuple[str, ...] | None = None, **changes: Any) -> None:
    """A BERT of width 32 with its tokenizer; with labels it has a head for them."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48} | changes
    names = dict(enumerate(labels)) if labels else None
    config = BertConfig(vocab_size=26, max_position_embeddings=32, id2label=names, **sizes)
    torch.manual_seed(7)
    (BertForSequenceClassification if labels else BertModel)(config).save_pretrained(folder)
    write_tokenizer(folder)


def write_images(path: Path, count: int, seed: int, size: int = 8) -> None:
    """Three classes of images: bright at the top, at the bottom, or on the left."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(draw.integers(3))
        pixels = draw.integers(0, 120, (size, size))
        half = (slice(None, size // 2), slice(size // 2, None), (slice(None), slice(None, size // 2)))[label]
        pixels[half] += 100
        written = io.BytesIO()
        Image.fromarray(pixels.astype("uint8")).save(written, "PNG")
        rows.append({"image": {"bytes": written.getvalue(), "path": None}, "label": label})
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_world(folder: Path) -> Roots:
    """Everything that a job below may name."""
    (folder / "models" / "source").mkdir(parents=True)
    (folder / "data").mkdir()
    write_bert(folder / "models" / "source")
    for split, count in (("train", 60), ("test", 40)):
        write_lines(folder / "data" / f"{split}.jsonl", text_rows(count, len(split)))
        write_images(folder / "data" / f"{split}.parquet", count, len(split))
    return Roots((folder / "models",), (folder / "data",))


def text_job(**changes: Any) -> JobSpec:
    """A small BERT into a smaller one; `changes` set entries by path, with two underscores between its names."""
    document: dict[str, Any] = {
        "name": "tiny",
        "source": {"model": {"path": "source"}},
        "target": {
            "model": {"config": {"model_type": "bert", "max_position_embeddings": 32, **BERT}},
            "task": "text-classification",
            "data": {"train": "train.jsonl", "test": "test.jsonl", "train_limit": 24, "max_length": 16},
        },
        "transfer": {"method": "project", "distill": {"teacher": {"steps": 4, "batch_size": 8}}},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 3, "checkpoint_every": 2},
    }
    return parse(_changed(document, changes))


def image_job(target: dict[str, Any], **changes: Any) -> JobSpec:
    """A trained-here source of the target's kind into the target."""
    wider = {"hidden_sizes": [16, 16]} if target["model_type"] == "mergenet-mlp" else {"channels": [6, 8]}
    data = {"train": "train.parquet", "test": "test.parquet", "image_size": 8}
    document: dict[str, Any] = {
        "name": "tiny",
        "source": {
            "model": {"config": target | wider},
            "data": data,
            "train": {"steps": 4, "batch_size": 8, "learning_rate": 1e-2},
        },
        "target": {"model": {"config": target}, "task": "image-classification", "data": data | {"train_limit": 24}},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "eval_every": 3, "checkpoint_every": 2},
    }
    return parse(_changed(document, changes))


def _changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    document = json.loads(json.dumps(document))
    for name, value in changes.items():
        *path, last = name.split("__")
        entry = document
        for key in path:
            entry = entry.setdefault(key, {})
        entry[last] = json.loads(json.dumps(value))
    return document


class Recorder:
    """Keeps what a trial reports; `ask` maps a number of finished steps to what is asked of it then."""

    def __init__(self, ask: Mapping[int, Literal["stop", "checkpoint"]] | None = None) -> None:
        self.ask = dict(ask or {})
        self.steps = 0
        self.events: list[tuple[str, str]] = []
        self.metrics: list[tuple[int, str, dict[str, float]]] = []
        self.losses: dict[int, float] = {}
        self.checkpoints: list[Checkpoint] = []

    def event(self, type: str, message: str, *, level: str = "info", **data: JsonValue) -> None:
        self.events.append((type, message))

    def metric(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.metrics.append((step, split, dict(values)))

    def begin_step(self) -> None: ...

    def progress(self, step: int, steps: int, *, loss: float, metric: float | None, eta_seconds: float | None) -> None:
        self.steps = step
        self.losses[step] = loss

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)

    def requested(self) -> Literal["stop", "checkpoint"] | None:
        return self.ask.pop(self.steps, None)


def flip_last_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read()[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def run_twice(job: JobSpec, folder: Path, roots: Roots) -> tuple[TrialResult, Path]:
    """The transfer's result and exported model; stopped at step 3 and resumed it has the same, bit for bit."""
    whole = run(job, "transfer-0", folder / "whole", roots)
    assert whole.last["test"] == whole.metrics[whole.metric]
    with pytest.raises(Interrupted):
        run(job, "transfer-0", folder / "parts", roots, Recorder({3: "stop"}))
    parts = run(job, "transfer-0", folder / "parts", roots, attempt=2)
    assert (parts.last, parts.best, parts.metrics) == (whole.last, whole.best, whole.metrics)
    folders = [folder / name / "trials" / "transfer-0" / "model" for name in ("whole", "parts")]
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    return whole, folders[0]


def run(
    job: JobSpec, name: str, folder: Path, roots: Roots, recorder: Recorder | None = None, attempt: int = 1
) -> TrialResult:
    recorder, trial = recorder or Recorder(), trial_named(job, name)
    return run_trial(job, trial, JobFolder(folder), roots, AttemptContext(attempt, recorder, recorder))


def prepared(job: JobSpec, name: str, folder: Path, roots: Roots) -> Training:
    """What a trial trains, before its first step."""
    return prepare_training(open_trial(job, trial_named(job, name), JobFolder(folder), roots))


def trial_named(job: JobSpec, name: str) -> Trial:
    """`source`, or an arm and its seed such as `transfer-0`."""
    if name == "source":
        return Trial(id=name, kind="source", seed=job.source.seed)
    arm, seed = name.rsplit("-", 1)
    return Trial(id=name, kind="arm", arm=arm, seed=int(seed))
