"""The files of a published folder: a checkpoint or the result of a job."""

from __future__ import annotations

from typing import Literal

from mergenet_core.records.provenance import Provenance
from mergenet_core.records.record import Record


class Artifact(Record):
    """A file of a published folder."""

    path: str
    bytes: int
    sha256: str
    role: str
    """`model`, `adapter`, `report`, `card`, `tokenizer`, `spec`, `manifest`, or `state` for a checkpoint's files."""


class Manifest(Record):
    """The files of a published folder. It is written last: the folder is complete when every file here matches."""

    kind: Literal["checkpoint", "artifact"]
    step: int
    files: tuple[Artifact, ...]
    about: Provenance = {}
    """What the folder was made from."""
