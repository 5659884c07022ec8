"""Reads job documents and lists from the command line, and plans a job on this machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

from mergenet_core.errors import PathRefused, SpecInvalid
from mergenet_core.planning.plan import Plan
from mergenet_core.records.api_keys import Scope
from mergenet_core.spec.job import Arm, JobSpec
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots

_SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Override:
    """Entries of a document that command line options replace."""

    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    @classmethod
    def read(cls, arms: str | None, seeds: str | None) -> Self:
        """Read the options --arms (`a,b` or `all`) and --seeds (`0,1,2`). Raises: `SpecInvalid`."""
        names = get_args(Arm) if arms == "all" else tuple(name.strip() for name in arms.split(",")) if arms else None
        try:
            numbers = tuple(int(seed) for seed in seeds.split(",")) if seeds else None
        except ValueError:
            raise SpecInvalid(f"--seeds {seeds!r} is not a list of whole numbers; write for example 0,1,2") from None
        return cls(names, numbers)


def read_document(path: Path, override: Override = Override()) -> JobSpec:
    """Read a job document; `-` is standard input. Raises: `PathRefused`, `SpecInvalid`."""
    try:
        text = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise PathRefused(f"{path} cannot be read ({error.strerror}); give a job document, YAML or JSON") from None
    spec = parse(text)
    changes = {name: list(value) for name, value in vars(override).items() if value is not None}
    return parse(spec.model_dump(exclude_unset=True) | changes) if changes else spec


def read_scopes(text: str) -> tuple[Scope, ...]:
    """Read the option --scopes, such as `read,submit`. Raises: `SpecInvalid`."""
    names = [name.strip() for name in text.split(",")]
    scopes = tuple(scope for scope in _SCOPES if scope in names)
    if unknown := set(names) - set(_SCOPES):
        raise SpecInvalid(f"--scopes has {', '.join(sorted(unknown))!r}; there are {', '.join(_SCOPES)}")
    return scopes


def plan_here(spec: JobSpec, models: Path, data: Path) -> Plan:
    """Plan a job with this machine's folders, without a service. Raises: what `make_plan` raises."""
    from mergenet_core.planning.make_plan import make_plan  # other commands need only the form of a plan

    return make_plan(spec, Roots(models=(models,), data=(data,)), Path(), [])
