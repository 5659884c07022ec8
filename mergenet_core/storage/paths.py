"""Where things lie: the folders of a job, and the roots that a user's paths must stay in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mergenet_core.errors import PathRefused


@dataclass(frozen=True)
class Roots:
    """Folders that job documents may name models and data in, and whether the hub may be asked."""

    models: tuple[Path, ...]
    data: tuple[Path, ...]
    hub: bool = False

    def model(self, text: str, field: str) -> Path:
        """Resolve a model folder. Raises: `PathRefused`."""
        found = _inside(text, self.models, field, "model")
        if found.is_file():
            raise PathRefused(f"{field}: {text!r} is a file; give a model's folder, or as source.model.pack a pack")
        return found

    def pack(self, text: str, field: str) -> Path:
        """Resolve a knowledge pack, which is a file. Raises: `PathRefused`."""
        found = _inside(text, self.models, field, "model")
        if not found.is_file():
            raise PathRefused(f"{field}: {text!r} is a folder; give a file that `mergenet pack` has written")
        return found

    def dataset(self, text: str, field: str) -> Path:
        """Resolve a data file or folder. Raises: `PathRefused`."""
        return _inside(text, self.data, field, "data")


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job below the service's home; every name in it is made by the service."""

    path: Path

    @property
    def spec(self) -> Path:
        """The job document as it was accepted, JSON."""
        return self.path / "job.json"

    @property
    def artifact(self) -> Path:
        """The published result."""
        return self.path / "artifact"

    @property
    def source(self) -> Path:
        """The source as trained by the trial `source`, in the Hugging Face layout."""
        return self.path / "source"

    @property
    def source_states(self) -> Path:
        """The source as it was at several steps of that trial, where the target learns along its trajectory."""
        return self.path / "source-states"

    def source_state(self, step: int) -> Path:
        """One of them."""
        return self.source_states / f"step-{step:08d}"

    @property
    def processor(self) -> Path:
        """The tokenizer or image processor out of the source's pack."""
        return self.path / "processor"

    @property
    def teachers(self) -> Path:
        """The source fine-tuned on each seed's examples, which all arms of the seed that distil share."""
        return self.path / "teachers"

    def trial(self, trial_id: str) -> Path:
        """All of one trial: checkpoints, exports, metrics and events as JSON lines, logs by attempt."""
        return self.path / "trials" / trial_id

    def log(self, trial_id: str, attempt: int) -> Path:
        """What the attempt's processes printed."""
        return self.trial(trial_id) / f"attempt-{attempt}.log"


def job_folder(home: Path, job_id: str) -> JobFolder:
    """The folder of a job; it need not exist."""
    return JobFolder(home / "jobs" / job_id)


def _inside(text: str, roots: tuple[Path, ...], field: str, what: str) -> Path:
    bases = [root.resolve() for root in roots]
    found = [_resolved(base / text) for base in bases]
    inside = [path for path in found if path is not None and any(path.is_relative_to(base) for base in bases)]
    for path in inside:
        if os.path.exists(path):
            return path
    allowed = ", ".join(map(str, roots)) or "none is configured"
    if len(inside) < sum(path is not None for path in found) or not roots:
        raise PathRefused(f"{field}: {text!r} lies outside the {what} roots ({allowed}); move it there or add a root")
    raise PathRefused(f"{field}: {text!r} does not exist below the {what} roots ({allowed}); check the spelling")


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long
        return None
