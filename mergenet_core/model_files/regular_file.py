"""Refuses what looks like a file and is none: opening a named pipe would wait for ever."""

from __future__ import annotations

from pathlib import Path

from mergenet_core.errors import ModelRefused


def check_regular(path: Path) -> None:
    """Refuse a pipe, socket, device or folder. Raises: `ModelRefused`; `OSError` if there is nothing."""
    path.stat()
    if not path.is_file():
        raise ModelRefused(f"{path.parent.name}/{path.name} is not a regular file; replace it by one")
