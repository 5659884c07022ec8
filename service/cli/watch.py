"""Watches a job until it has ended: a live table on a terminal, a line for each event elsewhere, then the report."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mergenet_core.errors import NotFound
from mergenet_core.records.events import Event, Progress
from service.cli import render
from service.client import Client
from service.schemas import JobView

LINE_SECONDS = 5.0
"""Time between two lines of progress of one trial, where the output is not a terminal."""


def watch_job(client: Client, job_id: str, console: Console) -> bool:
    """Show a job until it has ended. Returns: whether it succeeded. Raises: `NotFound`, `Unavailable`."""
    job = client.get(job_id)
    if console.is_terminal:
        _live(client, job, console)
    else:
        _lines(client, job, console)
    job = client.get(job_id)
    if job.state == "succeeded":
        try:
            render.report(console, client.report(job_id))
        except NotFound:
            console.print(f"{job.name} ({job.id}) succeeded, but it has no report", markup=False)
    else:
        console.print(f"{job.name} ({job.id}) is {job.state}: {job.reason}", markup=False)
        if job.state == "failed":
            console.print(f"Run `mergenet logs {job.id}` to read its log", markup=False)
    return job.state == "succeeded"


def _live(client: Client, job: JobView, console: Console) -> None:
    with Live(_live_view(console, job), console=console, refresh_per_second=4, transient=True) as live:
        for item in client.follow(job.id):
            if isinstance(item, Progress):
                job = job.model_copy(update={"progress": job.progress | {item.trial: item}})
            elif _is_news(job, item):
                job = client.get(job.id)  # the record also has results and the reason for waiting
            live.update(_live_view(console, job))


def _is_news(job: JobView, event: Event) -> bool:
    """Whether an event is newer than the job's record; a stream begins with past events."""
    return event.ts >= job.updated_at


def _live_view(console: Console, job: JobView) -> Group:
    head = f"{job.name} ({job.id}) is {job.state}: {job.waiting_reason or job.reason}"
    left = _seconds_left(job)
    if left is not None:
        head += f"; about {render.duration(left)} of training left"
    return Group(Text(head), render.trials(console, job))


def _seconds_left(job: JobView) -> float | None:
    """Time for the remaining steps of all trials, at the speed of the newest progress."""
    running = [at for at in job.progress.values() if at.eta_seconds is not None and 0 < at.step < at.steps]
    if not running:
        return None
    newest = max(running, key=lambda at: at.at)
    step_seconds = (newest.eta_seconds or 0) / (newest.steps - newest.step)
    left = 0
    for trial in job.trials:
        if trial.kind == "finalize" or trial.state in ("succeeded", "cancelled"):
            continue
        at = job.progress.get(trial.id)
        left += at.steps - at.step if at else newest.steps
    return step_seconds * left


def _lines(client: Client, job: JobView, console: Console) -> None:
    printed_at: dict[str, float] = {}
    for item in client.follow(job.id):
        if isinstance(item, Event):
            trial = "" if item.trial is None or item.trial in item.message else f"{item.trial}: "
            console.print(f"{item.ts.astimezone():%H:%M:%S} {trial}{item.message}", markup=False, highlight=False)
        elif time.monotonic() - printed_at.get(item.trial, 0.0) >= LINE_SECONDS:
            printed_at[item.trial] = time.monotonic()
            console.print(" ".join(_progress_words(item)), markup=False, highlight=False)


def _progress_words(at: Progress) -> Iterator[str]:
    yield f"{at.at.astimezone():%H:%M:%S} {at.trial} step {at.step}/{at.steps}"
    if at.loss is not None:
        yield f"loss {at.loss:.4f}"
    if at.metric is not None:
        yield f"metric {at.metric:.4f}"
    if at.eta_seconds is not None:
        yield f"{render.duration(at.eta_seconds)} left"
