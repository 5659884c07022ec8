"""What a training step costs with each method, as ratios to the control's within one process.

    python benchmarks/step_cost.py [--rounds 40] [--threads 2]

The example's pair (MiniLM-L6 into a BERT 2×128). All arms advance in turn, a step each, so that whatever else the
machine does falls on all of them alike. Means, because a transfer happens at every `cycle`-th step only; the steps are
those of the first half, in which transfers happen.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mergenet_core.records.job import Trial
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import prepare_arm
from mergenet_core.training.loop import Training

ROOT = Path(__file__).parent.parent
METHODS = ("project", "anchored", "lpka")


def main() -> None:
    """Time the arms and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    with tempfile.TemporaryDirectory() as place:
        arms = {"control": prepared("control", "auto", Path(place), wanted.rounds)}
        arms |= {method: prepared("transfer", method, Path(place), wanted.rounds) for method in METHODS}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(wanted.rounds):
            for name, training in arms.items():
                begun = time.perf_counter()
                training.advance()
                seconds[name].append(time.perf_counter() - begun)
    control = statistics.fmean(seconds["control"])
    print(f"torch {torch.__version__}, {wanted.threads} threads, {wanted.rounds} steps an arm, in turn")
    for name, times in seconds.items():
        ratios = [own / other for own, other in zip(times, seconds["control"], strict=True)]
        middle = statistics.quantiles(ratios, n=4)
        mean = statistics.fmean(times)
        print(f"{name}: {mean / control:.2f} of the control's step (middle half {middle[0]:.2f} to {middle[2]:.2f})")


def prepared(arm: str, method: str, place: Path, rounds: int) -> Training:
    """An arm that is ready for its first step; its steps are twice those timed, so that transfers do not stop."""
    text = (ROOT / "examples" / "bbc-topics.yaml").read_text()
    text = text.replace("train: {steps: 160", f"train: {{steps: {2 * rounds}")
    job = parse(text.replace("method: project", f"method: {method}"))
    roots = Roots(models=(ROOT / "models",), data=(ROOT / "data",))
    trial = Trial(id=f"{arm}-0", kind="arm", arm=arm, seed=0)
    training = prepare_arm(job, trial, JobFolder(place), roots).training
    training.start()
    training.advance()
    return training


if __name__ == "__main__":
    main()
