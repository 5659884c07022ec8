"""Prints plans, jobs and reports: as tables on a terminal, as Markdown elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mergenet_core.pairing.result import How, Pairing
from mergenet_core.planning.plan import Plan
from mergenet_core.records.workers import DeviceState, WorkerInfo
from mergenet_core.results.comparisons import Difference, p_text, points
from mergenet_core.results.report import (
    Report,
    baselines_note,
    comparisons_note,
    cost_sentence,
    delivery_sentence,
    memory_sentence,
)
from service.schemas import JobPage, JobView

_NAMES_SHOWN = 3
_HOW: dict[How, str] = {
    "same": "shared",
    "names": "shared by name",
    "carried": "mapped",
    "free": "mapped freely",
}
"""How source and target agree on an axis, in words for the pairing's table."""


def plan(console: Console, plan: Plan) -> None:
    """Print a plan: the pairing, the estimate and notes."""
    if plan.pairing is not None and plan.pairing.method == "fit":
        _fit_summary(console, plan.pairing, plan.estimate.target_parameters)
    elif plan.pairing is not None:
        _pairing_summary(console, plan.pairing, plan.estimate.target_parameters)
        pairing(console, plan.pairing)
    estimate = plan.estimate
    trained = sum(trial.kind != "finalize" for trial in plan.trials)
    console.print(
        f"{trained} trials with {estimate.steps:,} steps in total; memory of a process: "
        f"{_size(estimate.memory_bytes)}; disk: {_size(estimate.disk_bytes)}"
    )
    if estimate.strategies:
        memory_by_strategy(console, plan)
    for note in plan.notes:
        console.print(f"Note: {note}", markup=False)


def _fit_summary(console: Console, found: Pairing, target_parameters: int | None) -> None:
    console.print(
        f"Method fit solves {_share(found, target_parameters)} target parameters from the source's activations; no "
        "weights pair, and no axis has to be shared"
    )
    for reason in sorted(set(found.unpaired.values())):
        names = ", ".join(name for name, because in found.unpaired.items() if because == reason)
        console.print(f"{names}: {reason}", markup=False)


def _share(found: Pairing, target_parameters: int | None) -> str:
    """How many of the target's parameters the transfer can write."""
    count = f"{found.transferable_parameters:,}"
    if not target_parameters:
        return count
    return f"{count} of {target_parameters:,} ({found.transferable_parameters / target_parameters:.0%})"


def _pairing_summary(console: Console, found: Pairing, target_parameters: int | None) -> None:
    console.print(
        f"{len(found.pairs)} pairs of weights; the method {found.method} can write {_share(found, target_parameters)} "
        "target parameters"
    )
    shared = [f"{name} ({axis.source_size})" for name, axis in found.axes.items() if axis.anchored]
    mapped = [
        f"{name} ({axis.source_size} → {axis.target_size})" for name, axis in found.axes.items() if not axis.anchored
    ]
    console.print(f"Axes with the same meaning in both models: {', '.join(shared) or 'none'}", markup=False)
    if mapped:
        console.print(f"Axes mapped from source to target: {', '.join(mapped)}", markup=False)
    for name, reason in found.unshared.items():
        console.print(f"Axis {name} is not shared: {reason}", markup=False)
    for name, reason in found.undecided.items():
        console.print(f"Axis {name} may be shared: {reason}", markup=False)


def memory_by_strategy(console: Console, plan: Plan) -> None:
    """Print the memory of a process under each strategy, and what it sends in a step; * marks the plan's strategy."""
    kinds = ("weights", "gradients", "moments", "buffers", "activations", "transfer")
    needs = table(console, "strategy", *kinds, "device peak", "host", "numbers sent in a step")
    for one in plan.estimate.strategies:
        mark = "*" if one.strategy == plan.strategy else ""
        kept = (one.weights, one.gradients, one.moments, one.buffers, one.activations, one.transfer)
        held = [_size(count) for count in (*kept, one.device_bytes, one.host_bytes)]
        needs.add_row(f"{one.strategy}{mark}", *held, f"{one.exchanged:,}")
    console.print(needs)
    if plan.strategy not in ("single", "ddp"):
        console.print(f"A transfer exchanges about {plan.estimate.transfer_numbers:,} numbers between the processes")


def pairing(console: Console, found: Pairing) -> None:
    """Print the pairs of weights layer by layer: how each axis agrees, and how many entries are written."""
    pairs = table(console, "layer", "target weight", "source weight", "output axis", "input axis", "entries written")
    matrices = [pair for pair in found.pairs if pair.rank is not None]
    for pair in matrices:
        pairs.add_row(
            "" if pair.layer is None else str(pair.layer),
            escape(pair.target),
            escape(pair.source),
            escape(_axis(found, pair.out)),
            escape(_axis(found, pair.inp)),
            f"{pair.parameters:,} ({pair.parameters / math.prod(pair.target_shape):.0%})",
        )
    console.print(pairs)
    vectors = len(found.pairs) - len(matrices)
    if vectors:
        console.print(f"Also paired: biases, norms and statistics on the same axes ({vectors})")
    reasons: dict[str, list[str]] = {}
    for name, reason in found.unpaired.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        console.print(f"Not paired: {', '.join(names[:_NAMES_SHOWN])}{more}: {reason}", markup=False)


def jobs(console: Console, page: JobPage) -> None:
    """Print a list of jobs."""
    listed = table(console, "job", "name", "state", "trials done", "created", "reason")
    for column, width in zip(listed.columns, (26, 8, 9, 4, 10, 8), strict=True):
        column.min_width, column.overflow = width, "fold"  # an id is needed whole, to be copied into other commands
    for one in page.items:
        done = f"{one.trials_done}/{one.trials}"
        created = one.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        listed.add_row(one.id, escape(one.name), one.state, done, created, escape(one.reason))
    console.print(listed)


def job(console: Console, job: JobView) -> None:
    """Print a job and its trials."""
    console.print(f"{job.name} ({job.id}) is {job.state}: {job.reason}", markup=False)
    if job.waiting_reason:
        console.print(f"Waiting: {job.waiting_reason}", markup=False)
    console.print(trials(console, job))


def trials(console: Console, job: JobView) -> Table:
    """A table of a job's trials with their progress."""
    listed = table(console, "trial", "state", "step", "loss", "metric", "time left", "attempt")
    for trial in job.trials:
        at = job.progress.get(trial.id)
        step = f"{at.step}/{at.steps}" if at else ""
        loss, metric, left = (at.loss, at.metric, at.eta_seconds) if at else (None, None, None)
        if trial.result is not None:
            step, loss = f"{trial.result.steps}/{trial.result.steps}", trial.result.final_loss
            metric, left = trial.result.last.get("test", metric), None
        listed.add_row(
            trial.id,
            f"[{_COLOURS.get(trial.state, 'default')}]{trial.state}[/]",
            step,
            "" if loss is None else f"{loss:.4f}",
            "" if metric is None else f"{metric:.4f}",
            duration(left) if trial.state == "running" else "",
            str(trial.attempt or ""),
        )
    return listed


def workers(console: Console, found: Sequence[WorkerInfo]) -> None:
    """Print the workers and the trial that each of them runs."""
    listed = table(console, "worker", "host", "state", "job", "trial", "device")
    for one in found:
        listed.add_row(one.name, one.host, one.state, one.job or "", one.trial or "", escape(one.device))
    console.print(listed)


def devices(console: Console, found: Sequence[DeviceState]) -> None:
    """Print the hosts' devices: the attempt that holds each, or why it is quarantined."""
    listed = table(console, "host", "device", "model", "memory", "state", "held by, or reason")
    for one in found:
        about = one.reason or one.holder or ""
        listed.add_row(one.host, one.id, escape(one.name), _size(one.memory_bytes), one.state, escape(about))
    console.print(listed)


def report(console: Console, report: Report) -> None:
    """Print the arms side by side, and the verdict."""
    listed = table(
        console,
        "arm",
        f"test {report.metric}",
        "best on validation",
        "Δ to control, points [95 % interval]",
        "step, ms",
        "training, s",
        "total, s",
    )
    for arm in report.arms:
        spread = "" if arm.sd is None else f" ± {100 * arm.sd:.2f}"
        listed.add_row(
            arm.arm,
            f"{100 * arm.mean:.2f}{spread}",
            f"{100 * sum(arm.best) / len(arm.best):.2f}",
            _difference(arm.difference),
            f"{1000 * arm.step_seconds:.0f}",
            f"{arm.seconds:.1f}",
            f"{arm.total_seconds:.1f}",
        )
    for baseline in report.baselines:
        spread = "" if baseline.sd is None else f" ± {100 * baseline.sd:.2f}"
        reached = f"{100 * baseline.mean:.2f}{spread}"
        listed.add_row(baseline.title, reached, "", _difference(baseline.difference), "", "", "")
    console.print(listed)
    console.print(f"[bold]{report.verdict}[/bold]: {escape(report.sentence)}")
    if note := baselines_note(report):
        console.print(note, markup=False)
    if report.comparisons:
        tested = table(console, "comparison", "difference, points [95 % interval]", "seeds", "p", "p, Holm")
        for one in report.comparisons:
            compared = f"{one.arm} against {one.difference.to}"
            seeds = str(len(one.difference.seeds))
            tested.add_row(compared, _difference(one.difference), seeds, p_text(one.p), p_text(one.p_holm))
        console.print(tested)
    if note := comparisons_note(report):
        console.print(note, markup=False)
    if cost := cost_sentence(report):
        console.print(cost, markup=False)
    if used := memory_sentence(report):
        console.print(used, markup=False)
    console.print(delivery_sentence(report), markup=False)


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit: 45 s, 3 min, 2.5 h."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(console: Console, *columns: str) -> Table:
    """An empty table, drawn with lines on a terminal and as Markdown elsewhere."""
    made = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN)
    for column in columns:
        made.add_column(column, no_wrap=not console.is_terminal)
    return made


_COLOURS = {"running": "green", "starting": "green", "succeeded": "blue", "failed": "red", "cancelled": "yellow"}


def _difference(found: Difference | None) -> str:
    return escape(points(found))


def _axis(found: Pairing, name: str | None) -> str:
    """An axis of the target: its name, how source and target agree on it, and how many of its entries are covered."""
    if name is None or name not in found.axes:
        return ""
    axis = found.axes[name]
    if not axis.anchored:
        return f"{name} {_HOW[axis.how]}, {axis.source_size} → {axis.target_size}"
    covered = f"{axis.shared_size} of " if axis.shared_size < axis.target_size else ""
    return f"{name} {_HOW[axis.how]}, {covered}{axis.target_size}"


def _size(count: int | None) -> str:
    if count is None:
        return "not known"
    if count >= 1e8:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
