"""Published folders on storage that all processes share: written and verified by all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mergenet_core.errors import CheckpointInvalid
from mergenet_core.records.provenance import Provenance
from mergenet_core.storage.published_folder import publishing, verify
from mergenet_core.training.distributed.world import World


@contextmanager
def publishing_together(
    world: World,
    folder: Path,
    *,
    kind: Literal["checkpoint", "artifact"],
    step: int,
    attempt: int,
    about: Provenance,
    roles: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """`publishing` for all processes: they write into one draft, which the main process publishes."""
    if not world.main:
        draft = world.from_main(folder)
        yield draft
        world.wait()
        return
    with publishing(folder, kind=kind, step=step, attempt=attempt, roles=roles, about=about) as draft:
        yield world.from_main(draft)
    world.wait()


def verify_together(world: World, folder: Path) -> None:
    """`verify` for all processes: the main one reads the files, and all of them raise if one is damaged.

    Raises: `CheckpointInvalid`.
    """
    fault = None
    if world.main:
        try:
            verify(folder)
        except CheckpointInvalid as error:
            fault = error.message
    fault = world.from_main(fault)
    if fault is not None:
        raise CheckpointInvalid(fault)
