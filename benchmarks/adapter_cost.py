"""What an adapter costs: parameters and a transfer step of `lpka` beside `lpka-raw`, in turn within one process.

    python benchmarks/adapter_cost.py [--rounds 20] [--threads 1]

One pair: MobileNetV2's 160×960 projection learning from ResNet50's 100×2048 head, at each method's own settings. A
transfer step is all that the method adds to a training step: write, backward, and the adapter's own update. Both
learn as the released code does, as hypernetworks. Writes docs/evidence/adapter_cost.json and adapter_cost.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import pair
from mergenet_core.spec.job import PairSpec, TransferSpec
from mergenet_core.training.export import environment
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.shards import ReplicatedShard

TARGET, SOURCE = (160, 960, 1, 1), (100, 2048)
EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
WARM_UP = 2


def main() -> None:
    """Time both methods and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    made = {method: transfer(method, wanted.rounds + WARM_UP) for method in ("lpka", "lpka-raw")}
    seconds: dict[str, list[float]] = {method: [] for method in made}
    for step in range(wanted.rounds + WARM_UP):
        for method, (moving, weight) in made.items():
            taken = step_seconds(moving, weight, step)
            if step >= WARM_UP:
                seconds[method].append(taken)
    ratios = [raw / own for raw, own in zip(seconds["lpka-raw"], seconds["lpka"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    parameters = {method: moving.parameters_count for method, (moving, _) in made.items()}
    found = {
        "target": TARGET,
        "source": SOURCE,
        "rank": made["lpka"][0].pairing.rank,
        "parameters": parameters,
        "parameters_ratio": parameters["lpka-raw"] / parameters["lpka"],
        "median_step_seconds": {method: statistics.median(times) for method, times in seconds.items()},
        "step_ratio": {"median": middle, "lower_quartile": low, "upper_quartile": high, "least": min(ratios)},
        "rounds": wanted.rounds,
        "threads": wanted.threads,
        "environment": environment(),
    }
    (EVIDENCE / "adapter_cost.json").write_text(json.dumps(found, indent=1) + "\n")
    (EVIDENCE / "adapter_cost.md").write_text(page(found))
    print(page(found))


def transfer(method: str, steps: int) -> tuple[Transfer, torch.nn.Parameter]:
    """The transfer of one pair, and the weight that it writes."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(0.02 * torch.randn(TARGET, generator=draw))
    source = {"head": 0.02 * torch.randn(SOURCE, generator=draw)}
    spec = TransferSpec(
        method=method, pairs=[PairSpec(source="head", target="project")], update="hypernetwork", cycle=1, stop_at=1.0
    )
    pairing = pair(ModelInfo({}, {"head": SOURCE}), ModelInfo({}, {"project": TARGET}), spec)
    return Transfer(
        TransferSource(source), {"project": ReplicatedShard(weight)}, pairing, spec, steps=steps, seed=0
    ), weight


def step_seconds(moving: Transfer, weight: torch.nn.Parameter, step: int) -> float:
    """What one transfer step takes; the target's own small step in between is not counted."""
    begun = time.perf_counter()
    moving.before(step)
    taken = time.perf_counter() - begun
    weight.grad = weight.detach().sign()
    begun = time.perf_counter()
    moving.after_backward(step)
    taken += time.perf_counter() - begun
    with torch.no_grad():
        weight -= 1e-3 * weight.grad
    begun = time.perf_counter()
    moving.after_step(step)
    return taken + time.perf_counter() - begun


def page(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    seconds, ratio = found["median_step_seconds"], found["step_ratio"]
    lines = [
        "# What an adapter costs",
        "",
        "MobileNetV2's 160×960 projection learning from ResNet50's 100×2048 head; `lpka` at its default settings, rank",
        f"{found['rank']}. From `benchmarks/adapter_cost.py`: {found['rounds']} steps each, in turn, "
        f"{found['threads']} thread(s), torch {found['environment']['torch']}.",
        "",
        "| method | adapter parameters | transfer step, median |",
        "|---|---|---|",
    ]
    for method, count in found["parameters"].items():
        lines.append(f"| `{method}` | {count:,} | {1000 * seconds[method]:.1f} ms |")
    lines += [
        "",
        f"`lpka` needs {found['parameters_ratio']:.0f} times fewer parameters, and its step is {ratio['median']:.1f} "
        f"times faster (middle half {ratio['lower_quartile']:.1f} to {ratio['upper_quartile']:.1f}, "
        f"least {ratio['least']:.1f}).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
