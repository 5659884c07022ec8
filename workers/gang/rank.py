"""One process of a gang, `python -m workers.gang.rank JOB/TRIAL/NUMBER`, started by the launcher as torchrun would."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mergenet_core.records.attempt import AttemptRef
from workers.gang.member import Member
from workers.outcome import Outcome
from workers.trial import log_by_lines, main


def serve(train: Callable[[Member], Outcome]) -> NoReturn:
    """Join the gang, train, tell how it ended, and end."""
    member = Member()
    log_by_lines()
    outcome = train(member)
    if outcome.ended == "finished" and member.world_rank > 0:
        outcome = Outcome(ended="finished")  # the result is told once, by the first
    member.leave(outcome)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # a library that takes its process group down at exit may wait for processes that are gone already
    os._exit(1 if outcome.ended == "failed" else 0)


if __name__ == "__main__":
    serve(lambda member: main(AttemptRef.parse(sys.argv[1]), member))
