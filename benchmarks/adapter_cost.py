"""What an adapter costs: parameters and the time of a transfer of `lpka` and `lpka-raw`, alternating in one process.

    python benchmarks/adapter_cost.py [--rounds 20] [--threads 1]

One pair: MobileNetV2's 160×960 projection learning from ResNet50's 100×2048 head, at each method's own settings. A
transfer step is what the method adds to a training step: write, backward, and the adapter's own update. Both methods
learn as hypernetworks, like the released code. Writes docs/evidence/adapter_cost.json and adapter_cost.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from measuring import write_evidence

from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import pair
from mergenet_core.spec.job import PairSpec, TransferSpec
from mergenet_core.training.export import environment
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.shards import ReplicatedShard

TARGET, SOURCE = (160, 960, 1, 1), (100, 2048)
WARM_UP_STEPS = 2


def main() -> None:
    """Time both methods and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transfers = {method: transfer(method, options.rounds + WARM_UP_STEPS) for method in ("lpka", "lpka-raw")}
    seconds: dict[str, list[float]] = {method: [] for method in transfers}
    for step in range(options.rounds + WARM_UP_STEPS):
        for method, (moving, weight) in transfers.items():
            duration = step_seconds(moving, weight, step)
            if step >= WARM_UP_STEPS:
                seconds[method].append(duration)
    ratios = [raw / own for raw, own in zip(seconds["lpka-raw"], seconds["lpka"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    parameters = {method: moving.parameters_count for method, (moving, _) in transfers.items()}
    numbers = {
        "target": TARGET,
        "source": SOURCE,
        "rank": transfers["lpka"][0].pairing.rank,
        "parameters": parameters,
        "parameters_ratio": parameters["lpka-raw"] / parameters["lpka"],
        "median_step_seconds": {method: statistics.median(times) for method, times in seconds.items()},
        "step_ratio": {"median": middle, "lower_quartile": low, "upper_quartile": high, "least": min(ratios)},
        "rounds": options.rounds,
        "threads": options.threads,
        "environment": environment(),
    }
    write_evidence("adapter_cost", numbers, page(numbers))
    print(page(numbers))


def transfer(method: str, steps: int) -> tuple[Transfer, torch.nn.Parameter]:
    """The transfer of one pair of weights, and the weight that it writes."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(0.02 * torch.randn(TARGET, generator=draw))
    source = {"head": 0.02 * torch.randn(SOURCE, generator=draw)}
    spec = TransferSpec(
        method=method, pairs=[PairSpec(source="head", target="project")], update="hypernetwork", cycle=1, stop_at=1.0
    )
    pairing = pair(ModelInfo({}, {"head": SOURCE}), ModelInfo({}, {"project": TARGET}), spec)
    target = {"project": ReplicatedShard(weight)}
    return Transfer(TransferSource(source), target, pairing, spec, steps=steps, seed=0), weight


def step_seconds(moving: Transfer, weight: torch.nn.Parameter, step: int) -> float:
    """The time of one transfer step, without the target's own small step in between."""
    start = time.perf_counter()
    moving.before(step)
    duration = time.perf_counter() - start
    weight.grad = weight.detach().sign()
    start = time.perf_counter()
    moving.after_backward(step)
    duration += time.perf_counter() - start
    with torch.no_grad():
        weight -= 1e-3 * weight.grad
    start = time.perf_counter()
    moving.after_step(step)
    return duration + time.perf_counter() - start


def page(numbers: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    seconds, ratio = numbers["median_step_seconds"], numbers["step_ratio"]
    lines = [
        "# What an adapter costs",
        "",
        "MobileNetV2's 160×960 projection learning from ResNet50's 100×2048 head; `lpka` at its default settings, rank",
        f"{numbers['rank']}. From `benchmarks/adapter_cost.py`: {numbers['rounds']} steps each, alternating, "
        f"{numbers['threads']} thread(s), torch {numbers['environment']['torch']}.",
        "",
        "| method | adapter parameters | transfer step, median |",
        "|---|---|---|",
    ]
    for method, count in numbers["parameters"].items():
        lines.append(f"| `{method}` | {count:,} | {1000 * seconds[method]:.1f} ms |")
    lines += [
        "",
        f"`lpka` needs {numbers['parameters_ratio']:.0f} times fewer parameters, and its step is {ratio['median']:.1f} "
        f"times faster (middle half {ratio['lower_quartile']:.1f} to {ratio['upper_quartile']:.1f}, "
        f"least {ratio['least']:.1f}).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
