"""What is dropped when a job has succeeded: everything that its artifact makes superfluous."""

from __future__ import annotations

import shutil

from mergenet_core.jobs.paths import JobFolder
from mergenet_core.jobs.records import Job
from mergenet_core.jobs.spec import JobSpec


def drop_trials(spec: JobSpec, folder: JobFolder, job: Job) -> None:
    """Remove checkpoints and exports of a succeeded job's trials, and the source trained for it, unless kept."""
    if spec.retention.keep_trials:
        return
    for trial in job.trials:
        for name in ("checkpoints", "model"):
            shutil.rmtree(folder.trial(trial.id) / name, ignore_errors=True)
    shutil.rmtree(folder.source, ignore_errors=True)
