"""What a published folder was made from; manifests hold it, so its keys stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from typing_extensions import TypedDict

SplitSummary: TypeAlias = Mapping[str, int | str]
"""What is recorded of a split: how many `examples` were used, further counts, and `sha256` of what was read."""


class Code(TypedDict):
    """The code that trained a model."""

    version: str
    sha256: str
    """Of all source files, since a changed copy may have the same version number."""


class Inputs(TypedDict, total=False):
    """What a job read."""

    data: Mapping[str, SplitSummary]
    """Per split of the target's data."""
    source: Mapping[str, str]
    """SHA-256 of each file of the source's weights; absent if the source began from a config."""
    target: Mapping[str, str]
    """SHA-256 of each file of the target's weights; absent if the target began from a config."""


class Provenance(TypedDict, total=False):
    """Where a published folder comes from; each kind of folder has the entries that apply to it."""

    job: str
    trial: str
    seed: int
    seeds: list[int]
    step: int
    seconds: float
    """Training time of a distillation's teacher."""
    spec_sha256: str
    """Of the file `job.json` in the same folder."""
    inputs: Inputs
    code: Code
    environment: Mapping[str, str]
    """Versions of Python and of the packages that affect a result."""
