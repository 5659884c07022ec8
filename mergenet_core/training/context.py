"""What the functions that prepare a trial need to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from mergenet_core.records.job import Trial
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.distributed.world import World, open_world


@dataclass(frozen=True)
class TrialContext:
    """A trial, the job it belongs to, where files are, and the processes that train it."""

    job: JobSpec
    trial: Trial
    folder: JobFolder
    roots: Roots
    """Where the job may read models and data."""
    world: World


def open_trial(job: JobSpec, trial: Trial, folder: JobFolder, roots: Roots) -> TrialContext:
    """Join the other processes of a trial. Raises: `ModelRefused` if the resources are not there."""
    train = job.train
    if trial.kind == "source":
        assert job.source.train is not None, "only a source that the job trains has a trial"
        train = job.source.train
    return TrialContext(job, trial, folder, roots, open_world(job.resources, train.precision))
