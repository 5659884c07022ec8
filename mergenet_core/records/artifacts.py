"""The files of a published folder: a checkpoint or the result of a job."""

from __future__ import annotations

from typing import Any, Literal

from mergenet_core.records.record import Record


class Artifact(Record):
    """A file of the job's result."""

    path: str
    bytes: int
    sha256: str
    role: str
    """`model`, `adapter`, `report`, `card`, `tokenizer`, `spec` or `manifest`."""


class Manifest(Record):
    """What a published folder holds, written last; a folder is whole when every file here matches."""

    kind: Literal["checkpoint", "artifact"]
    step: int
    files: tuple[Artifact, ...]
    about: dict[str, Any] = {}
    """Hashes of inputs and spec, code version, environment, seeds."""
