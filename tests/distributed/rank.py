"""One process of several: runs the trials of a file and writes their curves (started by `gang.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from mergenet_core.records.job import Trial
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.trial import AttemptContext, Interrupted, run_trial
from mergenet_core.transfer.shards import exchange
from tests.training.tiny import Recorder


def main(work: Path) -> None:
    torch.set_num_threads(1)
    tasks = json.loads((work / "tasks.json").read_text())
    roots = Roots((Path(tasks["models"]),), (Path(tasks["data"]),))
    for task in tasks["trials"]:
        job = parse(task["document"])
        arm, _, seed = task["trial"].rpartition("-")
        trial = Trial(id=task["trial"], kind="arm", arm=arm, seed=int(seed))
        requests = {int(step): word for step, word in task.get("requests", {}).items()}
        recorder = Recorder(requests)
        folder = JobFolder(Path(task["folder"]))
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(Interrupted))
            if task.get("broken"):
                stack.enter_context(broken_exchange())
            run_trial(job, trial, folder, roots, AttemptContext(task.get("attempt", 1), recorder, recorder))
        if int(os.environ["RANK"]) == 0:
            (work / f"{task['name']}.json").write_text(json.dumps(recorder.losses))


@contextlib.contextmanager
def broken_exchange() -> Iterator[None]:
    """Leave out the reductions of a transfer: each process takes its own terms of a sum for the sum."""
    all_reduce = exchange.all_reduce
    exchange.all_reduce = lambda flat, group: None
    try:
        yield
    finally:
        exchange.all_reduce = all_reduce


if __name__ == "__main__":
    main(Path(sys.argv[1]))
