"""`mergenet pack`: runs the factorization in a child process, because the command line does not import torch."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mergenet_core.errors import Unavailable
from mergenet_core.model_files.pack_sources import inspect_sources
from mergenet_core.processes.command import python_command


def run_pack(sources: Sequence[Path], rank: int, out: Path, dtype: str) -> int:
    """Write a pack and print its summary. Returns: the exit status.

    Raises: `Unavailable` if torch is not installed; what `inspect_sources` raises.
    """
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("mergenet pack needs torch on this machine: pip install 'mergenet-service[worker]'")
    inspect_sources(sources, out)
    options = ["--rank", str(rank), "--out", str(out), "--dtype", dtype]
    command = python_command("mergenet_core.models.pack_command", *options, "--", *map(str, sources))
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
