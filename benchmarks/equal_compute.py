"""Whether a fit is worth its time: fashion-unlabelled's distillation with more steps, against fit and distillation.

    python benchmarks/equal_compute.py [--factor 2]

The arm `distill` is trained at the setting's seeds with its steps multiplied; `transfer+distill` is that of
docs/evidence/fashion-unlabelled.json. Writes docs/evidence/equal_compute.json and equal_compute.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from evidence import document
from measuring import EVIDENCE, ROOT, write_evidence
from pydantic import JsonValue

from mergenet_core.records.job import Checkpoint, Trial, TrialResult
from mergenet_core.results.comparisons import difference, points, standard_deviation
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.export import environment
from mergenet_core.training.trial import AttemptContext, run_trial

SETTING = "fashion-unlabelled"


class Quiet:
    """Reports nothing, and asks nothing of a trial."""

    def event(self, type: str, message: str, *, level: str = "info", **data: JsonValue) -> None:
        """An event."""

    def metric(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Metrics of a split."""

    def begin_step(self) -> None:
        """A step begins."""

    def progress(self, step: int, steps: int, *, loss: float, metric: float | None, eta_seconds: float | None) -> None:
        """The state after a step."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A checkpoint."""

    def requested(self) -> Literal["stop", "checkpoint"] | None:
        """Nothing."""
        return None


def main() -> None:
    """Train the source, then the distillation at every seed, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=int, default=2)
    factor = parser.parse_args().factor
    torch.set_num_threads(1)
    job = document(SETTING)
    longer = job.model_copy(update={"train": job.train.model_copy(update={"steps": factor * job.train.steps})})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(job, Trial(id="source", kind="source", seed=job.source.seed), folder)
        trained: dict[int, dict[str, float]] = {}
        for seed in job.seeds:
            result = run(longer, Trial(id=f"distill-{seed}", kind="arm", arm="distill", seed=seed), folder)
            trained[seed] = {"test": result.last["test"], "seconds": seconds(result.cost.model_dump())}
            print(seed, trained[seed], flush=True)
    numbers = {"factor": factor, "steps": job.train.steps, "distill": trained, "environment": environment()}
    write_evidence("equal_compute", numbers, page(json.loads(json.dumps(numbers))))


def run(job: JobSpec, trial: Trial, folder: Path) -> TrialResult:
    """One trial from its spec to its result."""
    roots = Roots((ROOT / "models",), (ROOT / "data",))
    return run_trial(job, trial, JobFolder(folder), roots, AttemptContext(1, Quiet(), Quiet()))


def seconds(cost: Mapping[str, Any]) -> float:
    """Training with what came before its first step, without the source's own training."""
    return float(cost["train_seconds"] + cost["extra_seconds"])


def page(numbers: dict[str, Any]) -> str:
    """The table as Markdown."""
    stored = json.loads((EVIDENCE / f"{SETTING}.json").read_text())["trials"]
    arms = {
        name: {seed: stored[f"{name}-{seed}"]["last"]["test"] for seed in numbers["distill"]}
        for name in ("distill", "transfer+distill")
    }
    longer = {seed: entry["test"] for seed, entry in numbers["distill"].items()}
    steps, factor = numbers["steps"], numbers["factor"]
    rows = [
        (f"`distill`, {steps} steps", arms["distill"]),
        (f"`distill`, {factor * steps} steps", longer),
        (f"`transfer+distill`, {steps} steps", arms["transfer+distill"]),
    ]
    lines = [
        "# A fit at equal compute",
        "",
        f"The setting [{SETTING}]({SETTING}.md): distillation through unlabelled images with {factor} times the steps,",
        f"against the fit with distillation at {steps} steps. Test accuracy after the last step, {len(longer)} seeds,",
        "and the paired difference of `transfer+distill` to each row. From `benchmarks/equal_compute.py`.",
        "",
        "| arm | test, mean ± sd | `transfer+distill` is ahead by, points |",
        "|---|---|---|",
    ]
    best = {int(seed): value for seed, value in arms["transfer+distill"].items()}
    for title, by_seed in rows:
        values = [100 * value for value in by_seed.values()]
        other = {int(seed): value for seed, value in by_seed.items()}
        ahead = "–" if other == best else points(difference(best, other, title))
        lines.append(f"| {title} | {statistics.fmean(values):.2f} ± {standard_deviation(values):.2f} | {ahead} |")
    both = statistics.median(seconds(stored[f"transfer+distill-{seed}"]["cost"]) for seed in numbers["distill"])
    alone = statistics.median(seconds(stored[f"distill-{seed}"]["cost"]) for seed in numbers["distill"])
    lines += [
        "",
        f"In the setting's own run, `transfer+distill` took {both / alone:.2f} times as long as `distill` at equal",
        "steps, the fit and the teacher's pass included and the source's training not.",
    ]
    return "\n".join([*lines, "", f"torch {numbers['environment']['torch']}, CPU, one thread."]) + "\n"


if __name__ == "__main__":
    main()
