"""One process of a gang, `python -m workers.gang.rank JOB/TRIAL/NUMBER`, started by the launcher as torchrun would."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mergenet_core.records.attempt import AttemptRef
from workers.gang.member import Member
from workers.logs import configure_logging
from workers.outcome import Outcome
from workers.trial import main


def serve(train: Callable[[Member], Outcome]) -> NoReturn:
    """Join the gang, train, send the outcome, and exit."""
    member = Member()
    configure_logging()
    outcome = train(member)
    if outcome.ended == "finished" and member.world_rank > 0:
        outcome = Outcome.finished()  # the first process reports the result
    member.leave(outcome)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # at exit some libraries shut their process group down, and may wait for processes that are gone
    os._exit(1 if outcome.ended == "failed" else 0)


if __name__ == "__main__":
    serve(lambda member: main(AttemptRef.parse(sys.argv[1]), member))
