"""The page docs/evidence/sharding.md, from the figures of `sharding.py`."""

from __future__ import annotations

from typing import Any

HELD, LOADING, ERROR, OVERHEAD = 1.10, 1.15, 0.20, 1.15


def page(known: dict[str, Any]) -> str:
    """All figures so far, with their targets."""
    lines = ["# Several processes", ""]
    lines += [
        "Written by `benchmarks/sharding.py`: two processes on one CPU host, over gloo, one repetition per figure."
    ]
    lines += [f"Versions: {', '.join(f'{name} {value}' for name, value in known['versions'].items())}.", ""]
    for measurement, section in (
        ("exchange", _exchange),
        ("held", _held),
        ("peak", _peak),
        ("steps", _steps),
        ("limited", _limited),
    ):
        if measurement in known:
            lines += [*section(known[measurement]), ""]
    return "\n".join(lines)


def _exchange(figures: dict[str, Any]) -> list[str]:
    lines = ["## Numbers exchanged in a transfer of a 2816 × 1024 weight", ""]
    lines += ["| strategy, method, rank | numbers | c in c·r(m+n) | share of m·n |", "|---|---|---|---|"]
    for name, figure in figures.items():
        lines.append(f"| {name} | {figure['numbers']:,} | {figure['c']:.2f} | {figure['share']:.1%} |")
    lines += [
        "",
        "Every reduction of a step with a transfer is counted, on one process. These are counts, not times, and the",
        "same in every run. The last rank is the default: for `anchored` a quarter of the narrower side, where",
        "r(m+n) is 34 % of m·n, so it exchanges as many numbers as the matrix has, although no process holds the",
        "matrix. `lpka` starts from the factors of the previous transfer, which takes one product with r columns",
        "and one with r rows, and two more for their gradient: c = 2.",
    ]
    return lines


def _held(figures: dict[str, Any]) -> list[str]:
    lines = [f"## Parameters held by a process, and its peak while loading ({_parameters(figures)})", ""]
    lines += ["| strategy | held, of full / 2 | peak while loading, of held | and in MB |", "|---|---|---|---|"]
    for name, figure in figures.items():
        both = f"{figure['held']:.3f}" + (
            " (and as much in ZeRO's single-precision copy)" if figure["master_bytes"] else ""
        )
        met = _met(figure["loading_over_held"] <= LOADING) if name == "fsdp2" else ""
        lines.append(
            f"| {name} | {both} | {figure['loading_over_held']:.2f}{met} | {figure['loading_bytes'] / 1e6:.0f} |"
        )
    lines += [
        "",
        f"Targets: held ≤ {HELD} for what is sharded, peak ≤ {LOADING} for FSDP2. The peak is anonymous memory",
        "beyond what the process held after it had prepared a small model's trial (imports, tokenizer, examples,",
        "process group), sampled every millisecond until this model could take its first step; mapped pages of the",
        "checkpoint are not counted. DeepSpeed allocates master copy, gradients, moments and buckets within that",
        "time: most of its peak. The figures of ddp and zero3 were measured without the small model first, so they",
        "contain the imports.",
    ]
    return lines


def _parameters(figures: dict[str, Any]) -> str:
    return f"{next(iter(figures.values()))['parameters'] / 1e6:.0f} M parameters"


def _peak(figures: dict[str, Any]) -> list[str]:
    lines = ["## The estimate against the measured peak of a whole trial", ""]
    lines += ["| target, strategy | estimate, GB | measured, GB | error |", "|---|---|---|---|"]
    for name, figure in figures.items():
        values = f"{figure['estimated_bytes'] / 1e9:.2f} | {figure['measured_bytes'] / 1e9:.2f}"
        lines.append(
            f"| {name} | {values} | {figure['relative_error']:+.0%}{_met(abs(figure['relative_error']) <= ERROR)} |"
        )
    lines += [
        "",
        f"Target: within {ERROR:.0%}. Measured: the largest resident memory of any process, imports included. The",
        "constants of the estimate (runtime, a transfer's graph, copies of a changing weight) were fitted to the",
        "peaks of 18 M and 42 M, the runtime's again after gathered weights were returned to the system. What a map",
        "keeps, and the term for a weight larger than ZeRO's bucket, were fitted to all nine peaks.",
    ]
    return lines


def _steps(figures: dict[str, Any]) -> list[str]:
    lines = [
        "## Time of a step with transfers (T_cycle 8, frozen source) over the control's, alternating in one run",
        "",
    ]
    lines += ["| target, strategy | control's step, ms | anchored | lpka |", "|---|---|---|---|"]
    merged: dict[str, dict[str, Any]] = {}
    for name, figure in figures.items():
        merged.setdefault(", ".join(name.split(", ")[:2]), {}).update(figure)
    for name, figure in merged.items():
        cells = [_ratio(figure[method]) if method in figure else "–" for method in ("anchored", "lpka")]
        lines.append(f"| {name} | {1000 * figure['control_seconds']:.0f} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Target: ≤ {OVERHEAD}. Mean over cycles, smallest and largest. The example's pair: whole cycles of eight",
        "steps, 32 examples of 48 tokens per step. 109 M: six steps with a transfer and six without, weighted one",
        "to seven, 16 examples of 64 tokens per step, which is few for such a target; a transfer's cost does not",
        "grow with the batch. The cells of zero2 and zero3 at 109 M for anchored were timed with three exchanges of",
        "products per transfer, zero3's while tests ran on the same machine; the others with at least one exchange",
        "per layer.",
    ]
    return lines


def _ratio(figure: dict[str, float]) -> str:
    return f"{figure['ratio']:.2f} [{figure['least']:.2f}, {figure['most']:.2f}]{_met(figure['ratio'] <= OVERHEAD)}"


def _limited(figures: dict[str, Any]) -> list[str]:
    limit = next(iter(figures.values()))["limit_bytes"]
    lines = [f"## A job under a limit of {limit / 1e9:.2f} GB per process", ""]
    for name, figure in figures.items():
        count = f"{figure['processes']} process{'es' if figure['processes'] > 1 else ''}"
        outcome = f"killed{_met(figure['processes'] == 1)}"
        if "steps" in figure:
            outcome = f"trained {figure['steps']} steps and exported {figure['exported_bytes'] / 1e6:.0f} MB"
            outcome += f", at most {figure['most_bytes'] / 1e9:.2f} GB in a process"
        lines.append(f"- {name}, {count}: {outcome}")
    lines += [
        "",
        "A saved target of 109 M parameters, AdamW, single precision. Each process is checked every 2 ms and killed",
        "when its anonymous memory, imports included, is above the limit.",
    ]
    return lines


def _met(met: bool) -> str:
    return "" if met else " (missed)"
