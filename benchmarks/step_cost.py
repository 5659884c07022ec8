"""What a training step costs with each method, as ratios to the control's within one process.

    python benchmarks/step_cost.py [--rounds 40] [--threads 2]

The example's pair (MiniLM-L6 into a BERT 2×128). The arms alternate, one step each, so that other load on the machine
affects all of them. Means, because only every `cycle`-th step has a transfer; all timed steps are in the first half, in
which transfers happen.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from measuring import ROOT, alternating_step_seconds

from mergenet_core.records.job import Trial
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.arms import prepare_training
from mergenet_core.training.context import open_trial
from mergenet_core.training.loop import Training

METHODS = ("project", "anchored", "lpka")


def main() -> None:
    """Time the arms and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arms = {"control": started_arm("control", "auto", folder, options.rounds)}
        arms |= {method: started_arm("transfer", method, folder, options.rounds) for method in METHODS}
        seconds = alternating_step_seconds(arms, options.rounds)
    control_mean = statistics.fmean(seconds["control"])
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} steps per arm, alternating")
    for name, times in seconds.items():
        ratios = [own / control for own, control in zip(times, seconds["control"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ratio = statistics.fmean(times) / control_mean
        print(f"{name}: {ratio:.2f} of the control's step (middle half {low:.2f} to {high:.2f})")


def started_arm(arm: str, method: str, folder: Path, rounds: int) -> Training:
    """An arm after its first step. It has twice as many steps as are timed, so that transfers do not stop."""
    text = (ROOT / "examples" / "bbc-topics.yaml").read_text()
    text = text.replace("train: {steps: 160", f"train: {{steps: {2 * rounds}")
    job = parse(text.replace("method: project", f"method: {method}"))
    roots = Roots(models=(ROOT / "models",), data=(ROOT / "data",))
    trial = Trial(id=f"{arm}-0", kind="arm", arm=arm, seed=0)
    training = prepare_training(open_trial(job, trial, JobFolder(folder), roots))
    training.start()
    training.advance()
    return training


if __name__ == "__main__":
    main()
