"""The most memory that this process has held, as the system or the GPU's allocator counted it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_RESET_PEAK = "5"


def reset_peak() -> None:
    """Count from here: a process may have held more before the trial."""
    with contextlib.suppress(OSError):  # a container may mount /proc read-only; then the process's whole life counts
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """The most bytes at once since then: reserved on the GPU, or resident on a CPU, files that are mapped included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
