"""Replaces the launcher on a host: records when it ran there, for half a second or until SIGTERM, and succeeds."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from mergenet_core.processes.linux import die_with
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import ArmCost, TrialResult
from mergenet_core.settings import Settings
from workers.outcome import OUTCOME_FD, Outcome, send

SECONDS = 0.5
RESULT = TrialResult(
    steps=1, final_loss=1.0, metric="accuracy", cost=ArmCost(step_seconds=1, train_seconds=1), parameters=1
)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    die_with(os.getppid())
    attempt = AttemptRef.parse(sys.argv[1])
    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    folder = Settings().job_folder(attempt.job_id)
    begun = time.time()
    name = f"{attempt.trial_id}-{attempt.number}-{options['--address']}"
    note(folder.path / name, begun=begun, options=options)
    print(f"here is {options['--address']}", flush=True)
    endless = "endless" in json.loads(folder.spec.read_text())["labels"]
    stopped = signal.sigtimedwait({signal.SIGTERM}, 600 if endless else SECONDS)
    note(
        folder.path / name,
        begun=begun,
        ended=time.time(),
        options=options,
    )
    outcome = Outcome.interrupted("stopped") if stopped else Outcome.finished(result=RESULT)
    send(int(os.environ[OUTCOME_FD]), outcome)


def note(path: Path, **what: object) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps(what))
    draft.rename(path.with_name(path.name + ".json"))


if __name__ == "__main__":
    main()
