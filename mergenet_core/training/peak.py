"""The largest memory of this process, as counted by the system or by the GPU's allocator."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_RESET_PEAK = "5"


def reset_peak() -> None:
    """Start counting anew: a process may have held more before the trial."""
    with contextlib.suppress(OSError):  # if /proc is mounted read-only, the whole life counts
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """The largest memory since `reset_peak`: reserved on the GPU, or resident on a CPU with mapped files."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
