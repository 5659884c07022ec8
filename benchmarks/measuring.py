"""What several benchmarks share: where pages go, times of arms that alternate, and a process's own memory."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from mergenet_core.training.loop import Training

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "docs" / "evidence"


def write_evidence(name: str, numbers: object, page: str) -> None:
    """Write the numbers to docs/evidence/NAME.json and their page to NAME.md."""
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    (EVIDENCE / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    (EVIDENCE / f"{name}.md").write_text(page)


def alternating_step_seconds(arms: Mapping[str, Training], rounds: int) -> dict[str, list[float]]:
    """The times of single steps, one step of each arm in turn, so that other load on the machine affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, training in arms.items():
            training.engine.world.wait()
            start = time.perf_counter()
            training.advance()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def anonymous_bytes(pid: int | str = "self") -> int:
    """A process's resident memory that is not a file's; 0 when the process has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024
    return 0
