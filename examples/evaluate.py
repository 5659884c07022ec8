"""Loads a downloaded artifact as any user would, with transformers alone, and measures it on the test split."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 64


def main(artifact: Path, data: Path) -> int:
    """Print the accuracy measured here beside the one in the report; 1 when they differ."""
    report = json.loads((artifact / "report.json").read_text())
    spec = json.loads((artifact / "job.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(artifact / "model", local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(artifact / "model", local_files_only=True)
    examples = [json.loads(line) for line in data.read_text().splitlines()]
    length = spec["target"]["data"]["max_length"]
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            texts = [example["text"] for example in batch]
            tokens = tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
            for row, example in zip(model(**tokens).logits.argmax(-1).tolist(), batch, strict=True):
                correct += model.config.id2label[row] == str(example["label"])
    accuracy = correct / len(examples)
    arm, seed = report["chosen"].rsplit("-", 1)
    chosen = next(entry for entry in report["arms"] if entry["arm"] == arm)
    promised = chosen["last"][chosen["seeds"].index(int(seed))]
    print(
        f"{type(model).__name__}, {model.num_parameters():,} parameters, loaded by from_pretrained in a fresh process"
    )
    print(f"test accuracy {100 * accuracy:.2f} measured here, {100 * promised:.2f} in the report ({report['chosen']})")
    return int(abs(accuracy - promised) > 1.5 / len(examples))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
