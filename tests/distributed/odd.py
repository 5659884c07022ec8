"""A job with odd sizes only, so that no strategy divides a weight at the end of a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.training.tiny import text_job

ODD = {
    "model_type": "bert", "max_position_embeddings": 31, "hidden_size": 14, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 25, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TRAIN = {
    "steps": 20, "batch_size": 8, "micro_batches": 2, "learning_rate": 2e-3, "eval_every": 10, "checkpoint_every": 10,
    "clip_norm": 0.5,
}  # fmt: skip
SOURCE = ODD | {"hidden_size": 18, "num_hidden_layers": 3, "intermediate_size": 29}
METHODS = {
    "anchored": {"method": "anchored", "cycle": 3, "stop_at": 1.0},
    "lpka-gradient": {"method": "lpka", "cycle": 1, "stop_at": 1.0, "width": 8, "heads": 2},
    "lpka-hypernetwork": {
        "method": "lpka", "update": "hypernetwork", "cycle": 1, "stop_at": 1.0, "width": 8, "heads": 2,
    },
    "project": {"method": "project"},
}  # fmt: skip
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


def trial(
    name: str,
    folder: Path,
    strategy: str,
    devices: int,
    method: str,
    arm: str = "transfer",
    joint: bool = False,
    offload: str = "none",
    **more: Any,
) -> dict[str, Any]:
    """One trial for `run_together`; `more` are training settings, or entries of the trial itself."""
    own = {key: more.pop(key) for key in ("requests", "broken", "attempt") if key in more}
    source: dict[str, Any] = {"model": {"path": "source"}}
    if joint:
        source = {
            "model": {"config": SOURCE, "tokenizer": "source"},
            "mode": "joint",
            "data": {"train": "train.jsonl", "test": "test.jsonl", "max_length": 16},
            "train": TRAIN | more | {"learning_rate": 1e-3},
        }
    job = text_job(
        source=source,
        target__model__config=ODD,
        transfer=METHODS[method],
        train=TRAIN | more,
        resources={"strategy": strategy, "devices": devices, "offload": offload},
    )
    document = json.loads(job.model_dump_json())
    return {"name": name, "document": document, "trial": f"{arm}-0", "folder": str(folder / name)} | own
