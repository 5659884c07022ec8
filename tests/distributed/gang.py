"""Starts processes that train together, and reads their results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots
from tests.training.tiny import Recorder, run


def run_together(size: int, trials: list[dict[str, Any]], roots: Roots, work: Path) -> dict[str, dict[int, float]]:
    """Run trials one after the other in `size` processes; returns the losses by name and step."""
    work.mkdir(parents=True, exist_ok=True)
    tasks = {"models": str(roots.models[0]), "data": str(roots.data[0]), "trials": trials}
    (work / "tasks.json").write_text(json.dumps(tasks))
    start_together(size, "tests.distributed.rank", work)
    found = {trial["name"]: json.loads((work / f"{trial['name']}.json").read_text()) for trial in trials}
    return {name: {int(step): loss for step, loss in losses.items()} for name, losses in found.items()}


def run_alone(trials: list[dict[str, Any]], roots: Roots) -> dict[str, dict[int, float]]:
    """Run trials for one process in this process, which saves starting one; returns the losses by name and step."""
    torch.set_num_threads(1)
    found = {}
    for trial in trials:
        recorder = Recorder()
        run(parse(trial["document"]), trial["trial"], Path(trial["folder"]), roots, recorder)
        found[trial["name"]] = recorder.losses
    return found


def start_together(size: int, module: str, work: Path) -> None:
    """Run a module in `size` processes of one process group; fails unless all succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(size):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = (work / f"{rank}.log").open("w")
        command = [sys.executable, "-m", module, str(work)]
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join((work / f"{rank}.log").read_text()[-3000:] for rank in range(size))
    assert codes == [0] * size, logs


def farthest(curve: dict[int, float], other: dict[int, float]) -> float:
    """The largest difference between two curves at steps that both have."""
    return max(abs(curve[step] - other[step]) for step in curve.keys() & other.keys())
