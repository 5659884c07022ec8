"""Where things lie: the folders of a job, and the roots that a user's paths must stay in."""

from __future__ import annotations

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
        return _inside(text, self.models, field, "model")

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
    allowed = ", ".join(str(root) for root in roots) or "none is configured"
    for root in roots:
        base = root.resolve()
        try:
            found = (base / text).resolve()
        except (OSError, RuntimeError, ValueError):
            continue
        if found.is_relative_to(base) and found.exists():
            return found
    if any((root.resolve() / text).resolve().is_relative_to(root.resolve()) for root in roots):
        raise PathRefused(f"{field}: {text!r} does not exist below the {what} roots ({allowed}); check the spelling")
    raise PathRefused(f"{field}: {text!r} lies outside the {what} roots ({allowed}); move it there or add a root")
