"""Whether a learned adapter learns: `anchored` and `lpka` with higher learning rates, against the adapter frozen.

    python benchmarks/adapter_rates.py [--seeds 10,11,12,13,14] [--factors 0,1,10,100]

The setting is fashion-mlp; a factor multiplies both of the adapter's learning rates. How far the adapter moved is the
distance of its parameters from those of the frozen one, relative to their norm. Writes docs/evidence/adapter_rates.json
and adapter_rates.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, write_evidence
from torch import Tensor

from mergenet_core.records.job import Trial
from mergenet_core.results.comparisons import Difference, difference, points, standard_deviation
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import prepare_training
from mergenet_core.training.context import open_trial
from mergenet_core.training.export import environment, export_model
from mergenet_core.transfer import cycle

SETTING = ROOT / "benchmarks" / "settings" / "fashion-mlp.yaml"
ROOTS = Roots((ROOT / "models",), (ROOT / "data",))
RATES = {"ADAPTER_RATE": cycle.ADAPTER_RATE, "GATE_RATE": cycle.GATE_RATE}
METHODS = ("anchored", "lpka")


def main() -> None:
    """Train every method at every factor and seed, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="10,11,12,13,14")
    parser.add_argument("--factors", default="0,1,10,100")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    factors = [float(factor) for factor in options.factors.split(",")]
    job = parse(SETTING.read_text())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(job, Trial(id="source", kind="source", seed=job.source.seed), folder)
        for method in METHODS:
            frozen: dict[int, dict[str, Tensor]] = {}
            of_method = job.model_copy(update={"transfer": job.transfer.model_copy(update={"method": method})})
            for factor in factors:
                for rate, value in RATES.items():
                    setattr(cycle, rate, factor * value)
                tests, moves = {}, {}
                for seed in seeds:
                    trial = Trial(id=f"transfer-{seed}", kind="arm", arm="transfer", seed=seed)
                    tests[seed], adapter = train(of_method, trial, folder)
                    moves[seed] = distance(adapter, frozen.setdefault(seed, adapter))
                rows.append({"method": method, "factor": factor, "test": tests, "moved": moves})
                print(rows[-1], flush=True)
    numbers = {"seeds": seeds, "steps": job.train.steps, "rows": rows, "environment": environment()}
    write_evidence("adapter_rates", numbers, page(numbers))


def train(job: JobSpec, trial: Trial, folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Train a trial to its end; returns the test accuracy and the adapter, and keeps a source in the job's folder."""
    training = prepare_training(open_trial(job, trial, JobFolder(folder), ROOTS))
    training.start()
    while training.step < training.spec.steps:
        training.advance()
    if trial.kind == "source":
        processor = training.task.processor
        export_model(training.engine, processor, JobFolder(folder).source, attempt=1, about={"step": training.step})
    tensors = training.transfer.adapter_tensors() if training.transfer is not None else {}
    adapter = {key: value.clone() for key, value in tensors.items() if not key.startswith("source.")}
    return training.evaluate(training.task.test)[training.task.metric], adapter


def distance(adapter: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """How far two adapters are apart, relative to the norm of the second."""
    apart = sum(float((adapter[key] - other[key]).square().sum()) for key in other)
    return float((apart / sum(float(value.square().sum()) for value in other.values())) ** 0.5)


def page(numbers: dict[str, Any]) -> str:
    """The table as Markdown."""
    seeds = numbers["seeds"]
    lines = [
        "# Whether a learned adapter learns",
        "",
        f"The setting [fashion-mlp](fashion-mlp.md): an MLP into a narrower one, 200 labels, {numbers['steps']} steps.",
        f"Test accuracy after the last step, seeds {seeds[0]} to {seeds[-1]}. A factor multiplies the adapter's",
        "learning rates (1e-4, gates 1e-3); with 0 the adapter is frozen, and `anchored` is its start. Moved: how far",
        "the adapter is from the frozen one, relative to its norm. From `benchmarks/adapter_rates.py`.",
        "",
        "| method | factor | adapter moved by | test, mean ± sd | Δ to the frozen adapter, points |",
        "|---|---|---|---|---|",
    ]
    for row in numbers["rows"]:
        tests = [100 * value for value in row["test"].values()]
        moved = statistics.fmean(row["moved"].values())
        gained = "–" if row["factor"] == 0 else points(to_frozen(numbers, row))
        mean = f"{statistics.fmean(tests):.2f} ± {standard_deviation(tests):.2f}"
        lines.append(f"| `{row['method']}` | {row['factor']:g} | {100 * moved:.1f} % | {mean} | {gained} |")
    version = numbers["environment"]["torch"]
    return "\n".join([*lines, "", CONCLUSION, "", f"torch {version}, CPU, one thread."]) + "\n"


def to_frozen(numbers: dict[str, Any], row: dict[str, Any]) -> Difference:
    """The paired difference between a row and the frozen adapter of the same method."""
    frozen = next(one for one in numbers["rows"] if one["method"] == row["method"] and one["factor"] == 0)
    by_seed = [{int(seed): value for seed, value in one["test"].items()} for one in (row, frozen)]
    return difference(by_seed[0], by_seed[1], "frozen")


CONCLUSION = """\
With few labels, an adapter that learns does not help. At the usual rates `anchored` stays near its start and gains what
its start gains; moved further, it fits the few labels and loses. `lpka`, whose gates begin at zero, gains nothing at
any rate. The knowledge comes from the maps that the methods begin with, not from what their adapters learn."""


if __name__ == "__main__":
    main()
