"""`mergenet pack`: the service itself has no torch, so the work is done by a process that has."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mergenet_core.errors import Unavailable
from mergenet_core.processes.command import python_command


def run_pack(sources: Sequence[Path], rank: int, out: Path, dtype: str) -> int:
    """Write a pack and print what it keeps. Returns: the exit status. Raises: `Unavailable` where torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("mergenet pack computes, so it needs torch here: pip install 'mergenet-service[worker]'")
    options = ["--rank", str(rank), "--out", str(out), "--dtype", dtype]
    command = python_command("mergenet_core.models.pack", *options, "--", *map(str, sources))
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
