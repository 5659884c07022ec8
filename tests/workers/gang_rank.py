"""A tiny training of several processes: a counter that every step adds up between them, checkpointed and resumed.

`python -m tests.workers.gang_rank JOB/TRIAL/NUMBER` takes the place of `workers.gang.rank`. The environment variable
GANG_FAULT names what goes wrong in the process of rank 1, at step 5 of attempt 1.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.training.protocols import COLLECTIVE_SECONDS
from tests.workers.gangs import FAULT, FOLDER
from workers.gang.member import Member
from workers.gang.rank import serve
from workers.outcome import Outcome
from workers.reporting import SignalControl

STEPS, STEP_SECONDS, CHECKPOINT_EVERY = 40, 0.02, 3
FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def train(member: Member) -> Outcome:
    import torch
    import torch.distributed as dist

    folder, how, attempt = Path(os.environ[FOLDER]), os.environ[FAULT], AttemptRef.parse(sys.argv[1]).number
    reporter, control = member.watch(None, SignalControl())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(f"threads: {os.environ['OMP_NUM_THREADS']}, tag: {os.environ.get('MERGENET_ATTEMPT')}", flush=True)
    (folder / f"process-{member.world_rank}").write_text(str(os.getpid()))
    # if rank 1 hangs, the launcher has to notice it, not a collective of rank 0
    seconds = 600 if how == "hang" else float(os.environ[COLLECTIVE_SECONDS])
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    steps = 10_000 if how == "endless" else STEPS
    checkpoint = folder / "counter"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    (folder / f"resumed-{attempt}-{member.world_rank}").write_text(str(step))
    while step < steps:
        if member.world_rank == 1 and step == 5 and attempt == 1:
            misbehave(how)
        sum_ = torch.ones(1)
        dist.all_reduce(sum_)
        step += int(sum_.item()) // dist.get_world_size()
        reporter.progress(step, steps, loss=0.0, metric=None, eta_seconds=None)
        asked = torch.tensor({None: 0, "checkpoint": 1, "stop": 2}[control.requested()])
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if member.world_rank == 0 and (step % CHECKPOINT_EVERY == 0 or asked):
            checkpoint.with_suffix(".draft").write_text(str(step))
            checkpoint.with_suffix(".draft").rename(checkpoint)
        if asked == 1:
            (folder / f"asked-{member.world_rank}").write_text(str(step))
        if asked == 2:
            return Outcome.interrupted(f"stopped at step {step}")
        time.sleep(STEP_SECONDS)
    if how == "late" and member.world_rank == 1:
        time.sleep(1)
        print(f"the first is there: {psutil.pid_exists(int((folder / 'process-0').read_text()))}", flush=True)
    return Outcome.finished(artifact=f"rank {member.world_rank} at step {step}")


def misbehave(how: str) -> None:
    if how in FAULTS:
        os.kill(os.getpid(), FAULTS[how])
    if how == "raise":
        raise ValueError("row 17 of the data has no label")
    if how == "hang":
        time.sleep(600)


def guarded(member: Member) -> Outcome:
    """As `workers.trial.main` turns exceptions into outcomes."""
    try:
        return train(member)
    except Exception as error:
        return Outcome.of_exception(error, "see the log", member.world_rank)


if __name__ == "__main__":
    serve(guarded)
