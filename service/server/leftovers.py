"""Finds folders of jobs that have no record: what a Redis left behind that was restored from an older state."""

from __future__ import annotations

import re
import time
from pathlib import Path

from mergenet_core.errors import NotFound
from mergenet_core.store.jobs import Store
from service.schemas import Leftover
from service.server.dependencies import JOB_ID

QUIET_SECONDS = 3600
"""A folder that has changed within this time may be that of a job that is being submitted."""


def find(home: Path, store: Store) -> list[Leftover]:
    """The folders below a service's home that belong to no job. Raises: `RedisError`."""
    folders = sorted((home / "jobs").glob("*/"))
    old = time.time() - QUIET_SECONDS
    return [
        Leftover(job=folder.name, bytes=_size(folder))
        for folder in folders
        if re.fullmatch(JOB_ID, folder.name, re.ASCII)
        and folder.stat().st_mtime < old
        and not _known(store, folder.name)
    ]


def _known(store: Store, job_id: str) -> bool:
    try:
        store.get(job_id)
    except NotFound:
        return False
    return True


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
