"""The folders of a job, and the roots that users' paths must stay in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mergenet_core.errors import PathRefused


@dataclass(frozen=True)
class Roots:
    """Folders in which job documents may name models and data, and whether they may name models of the hub."""

    models: tuple[Path, ...]
    data: tuple[Path, ...]
    hub: bool = False

    def model(self, text: str, field: str) -> Path:
        """Resolve a model folder. Raises: `PathRefused`."""
        found = _inside(text, self.models, field, "model")
        if found.is_file():
            raise PathRefused(f"{field}: {text!r} is a file; give a model's folder, or as source.model.pack a pack")
        _check_links(found, self.models, field)
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
    """The folder of one job below the service's home. No name in it comes from a user."""

    path: Path

    @property
    def spec(self) -> Path:
        """The accepted job document, as JSON."""
        return self.path / "job.json"

    @property
    def artifact(self) -> Path:
        """The published result of the job."""
        return self.path / "artifact"

    @property
    def source(self) -> Path:
        """The source as trained by the trial `source`, in the Hugging Face layout."""
        return self.path / "source"

    @property
    def source_states(self) -> Path:
        """Mode trajectory: the source after several steps of that trial."""
        return self.path / "source-states"

    def source_state(self, step: int) -> Path:
        """The source after one of these steps."""
        return self.source_states / f"step-{step:08d}"

    @property
    def processor(self) -> Path:
        """The tokenizer or image processor from the source's pack."""
        return self.path / "processor"

    @property
    def teachers(self) -> Path:
        """For each seed the source fine-tuned on its examples, which the seed's arms share; and that of its sham."""
        return self.path / "teachers"

    @property
    def probe_features(self) -> Path:
        """The frozen source's features of the test split, for the linear probe of every seed."""
        return self.path / "probe-features.npy"

    def trial(self, trial_id: str) -> Path:
        """The folder of a trial: checkpoints, exports, metrics and events as JSON lines, one log per attempt."""
        return self.path / "trials" / trial_id

    def log(self, trial_id: str, attempt: int) -> Path:
        """What the processes of an attempt printed."""
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


def _check_links(folder: Path, roots: tuple[Path, ...], field: str) -> None:
    """Refuse a model's folder with a link out of the roots. Raises: `PathRefused`."""
    bases = [root.resolve() for root in roots]
    for entry in folder.iterdir():
        target = _resolved(entry) if entry.is_symlink() else None
        if target is not None and not any(target.is_relative_to(base) for base in bases):
            allowed = ", ".join(map(str, roots))
            raise PathRefused(
                f"{field}: {folder.name}/{entry.name} is a link to a file outside the model roots ({allowed}); copy "
                "the file itself into the folder"
            )


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long
        return None
