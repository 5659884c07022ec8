"""The size of a knowledge pack and what its rank costs the target: the example's pair, `project`, a pack for each rank.

    python benchmarks/pack_cost.py [--seeds 0,1] [--packs float16:32,float16:84,int8:128]

Writes docs/evidence/packs.json and packs.md; rows that they already have for the same seeds and versions are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import EVIDENCE, ROOT, write_evidence

from mergenet_core.models.write_pack import write_pack
from mergenet_core.records.job import Trial
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import prepare_training
from mergenet_core.training.context import open_trial
from mergenet_core.training.export import environment

SOURCE = ROOT / "models" / "all-minilm-l6"


def main() -> None:
    """Train the arms and write the table; each row is printed as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--packs", default="float16:32,float16:64,float16:84,float16:128,float16:192,int8:128,int8:168")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    whole = sum(path.stat().st_size for path in SOURCE.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        roots = Roots(models=(ROOT / "models", folder), data=(ROOT / "data",))
        rows = earlier_rows(seeds)
        if not rows:
            rows = [row("control", 0, 1.0, "control", {"path": SOURCE.name}, seeds, roots)]
            rows.append(row("the source itself", whole, 1.0, "transfer", {"path": SOURCE.name}, seeds, roots))
        for dtype, rank in (text.split(":") for text in options.packs.split(",")):
            label, out = f"pack of rank {rank}, {dtype}", folder / f"{dtype}-{rank}.safetensors"
            if any(entry["source"] == label for entry in rows):
                continue
            pack = write_pack([SOURCE], out, rank=int(rank), dtype=dtype)
            energy = statistics.fmean(tensor.energy[0] for tensor in pack.tensors.values() if tensor.rank is not None)
            rows.append(row(label, out.stat().st_size, energy, "transfer", {"pack": out.name}, seeds, roots))
    numbers = {"source_bytes": whole, "seeds": seeds, "environment": environment(), "rows": rows}
    write_evidence("packs", numbers, page(numbers))


def earlier_rows(seeds: list[int]) -> list[Any]:
    """The rows of an earlier run."""
    path = EVIDENCE / "packs.json"
    numbers = json.loads(path.read_text()) if path.exists() else {}
    same = numbers.get("seeds") == seeds and numbers.get("environment") == environment()
    return numbers["rows"] if same else []


def row(label: str, size: int, energy: float, arm: str, model: dict[str, str], seeds: list[int], roots: Roots) -> Any:
    """One arm at every seed."""
    text = (ROOT / "examples" / "bbc-topics.yaml").read_text()
    document = parse(text).model_dump(exclude_unset=True)
    job = parse(document | {"source": {"model": model}, "arms": ["transfer", "control"]})
    accuracies = [accuracy(job, arm, seed, roots) for seed in seeds]
    measured = {"source": label, "bytes": size, "energy": energy, "test_accuracy": accuracies}
    print(json.dumps(measured), flush=True)
    return measured


def accuracy(job: JobSpec, arm: str, seed: int, roots: Roots) -> float:
    """The test accuracy after the last step."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(id=f"{arm}-{seed}", kind="arm", arm=arm, seed=seed)
        training = prepare_training(open_trial(job, trial, JobFolder(Path(folder)), roots))
        training.start()
        while training.step < job.train.steps:
            training.advance()
        return training.evaluate(training.task.test)[training.task.metric]


def page(numbers: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "# What a pack's rank costs",
        "",
        "MiniLM-L6 into a BERT 2×128 by `project`, BBC topics, 300 labels, 160 steps (`examples/bbc-topics.yaml`);",
        "test accuracy after the last step. Energy: the share of squared entries that is kept, over the matrices that",
        "are stored as factors (from rank 192 on, square matrices are smaller when stored whole). From",
        "`benchmarks/pack_cost.py`.",
        "",
        "| source | bytes | of the source | energy | "
        + " | ".join(f"seed {seed}" for seed in numbers["seeds"])
        + " | mean |",
        "|---" * (5 + len(numbers["seeds"])) + "|",
    ]
    for row in numbers["rows"]:
        size = f"{row['bytes']:,} | {100 * row['bytes'] / numbers['source_bytes']:.1f} %" if row["bytes"] else "– | –"
        energy = f"{row['energy']:.3f}" if row["bytes"] else "–"
        values = " | ".join(f"{100 * value:.2f}" for value in row["test_accuracy"])
        mean = f"{100 * statistics.fmean(row['test_accuracy']):.2f}"
        lines.append(f"| {row['source']} | {size} | {energy} | {values} | {mean} |")
    return "\n".join([*lines, "", f"torch {torch.__version__}, CPU."]) + "\n"


if __name__ == "__main__":
    main()
