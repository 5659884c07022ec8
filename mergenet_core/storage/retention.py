"""Removes what a succeeded job no longer needs, since its artifact holds the result."""

from __future__ import annotations

import shutil

from mergenet_core.records.job import Job
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder


def drop_trials(spec: JobSpec, folder: JobFolder, job: Job) -> None:
    """Remove a succeeded job's trial folders and the source and teachers trained for it, unless they are to be kept.

    Logs, metrics and events are files, and stay.
    """
    if spec.retention.keep_trials:
        return
    for trial in job.trials:
        for path in folder.trial(trial.id).glob("*/"):
            shutil.rmtree(path, ignore_errors=True)
    for path in (folder.source, folder.source_states, folder.teachers):
        shutil.rmtree(path, ignore_errors=True)
    folder.probe_features.unlink(missing_ok=True)
