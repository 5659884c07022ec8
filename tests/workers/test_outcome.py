"""Outcomes: what each end of an attempt is called, and their way through the pipe."""

from __future__ import annotations

import errno
import os

import pytest
from redis.exceptions import ConnectionError
from tokenizers import decoders

from mergenet_core.errors import MergeNetError, NodeLost, RankLost, TrainingDiverged
from workers.outcome import MESSAGE_LIMIT, Outcome, is_panic, receive, send


def test_an_outcome_passes_through_the_pipe() -> None:
    outcome = Outcome.of_error(MergeNetError("x" * 2 * MESSAGE_LIMIT))
    assert outcome.message == "x" * MESSAGE_LIMIT
    reader, writer = os.pipe()
    send(writer, outcome)
    assert receive(reader) == outcome


@pytest.mark.parametrize("text", [b"", b"half a docum"])
def test_a_process_that_ends_while_it_writes_has_reported_nothing(text: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    assert receive(reader) is None


def test_a_supervisor_that_is_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    send(writer, Outcome.finished(artifact="artifact"))


@pytest.mark.parametrize(
    ("status", "stopped", "memory_ran_out", "expected"),
    [
        (-9, False, True, ("failed", "out-of-memory", False)),
        (-9, False, False, ("failed", "training-crashed", True)),
        (-11, False, True, ("failed", "training-crashed", True)),
        (1, False, False, ("failed", "training-crashed", True)),
        (None, False, False, ("failed", "training-crashed", True)),
        (-9, True, False, ("interrupted", "", False)),
    ],
)
def test_an_end_without_a_report_is_named_by_its_circumstances(
    status: int | None, stopped: bool, memory_ran_out: bool, expected: tuple[str, str, bool]
) -> None:
    outcome = Outcome.unreported("the training process", status, stopped=stopped, memory_ran_out=memory_ran_out)
    assert (outcome.ended, outcome.code, outcome.retryable) == expected


def test_a_panic_of_compiled_code_is_a_bad_input_and_not_tried_again() -> None:
    with pytest.raises(BaseException, match="index out of bounds") as caught:
        decoders.Strip("a", 1, 5).decode(["a"])
    assert not isinstance(caught.value, Exception)
    assert is_panic(caught.value)
    outcome = Outcome.of_panic(caught.value, "see the log")
    assert (outcome.ended, outcome.code, outcome.retryable) == ("failed", "model-refused", False)
    assert "index out of bounds" in outcome.message
    assert not is_panic(SystemExit(1))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_a_quota_and_a_limit_of_file_sizes_are_the_same(number: int) -> None:
    assert Outcome.of_exception(OSError(number, os.strerror(number)), "see the log").code == "storage-full"


@pytest.mark.parametrize(("status", "how"), [(-11, " by signal SIGSEGV"), (3, " with exit status 3"), (None, "")])
def test_an_end_without_a_report_names_the_process_and_how_it_ended(status: int | None, how: str) -> None:
    outcome = Outcome.unreported("rank 1 (process 7)", status, error=RankLost)
    assert outcome.message == f"rank 1 (process 7) ended{how} without reporting an outcome; the log may say more"
    assert outcome.code == "rank-lost"


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (TrainingDiverged("too bad"), "training-diverged", False),
        (NodeLost("too bad"), "node-lost", True),
        (ConnectionError("too bad"), "unavailable", True),
    ],
)
def test_an_error_of_the_service_keeps_its_code(error: MergeNetError, code: str, retryable: bool) -> None:
    outcome = Outcome.of_error(error)
    assert (outcome.ended, outcome.code, outcome.retryable) == ("failed", code, retryable)
    assert outcome.message.endswith("too bad")


@pytest.mark.parametrize(
    ("error", "world_rank", "code", "retryable"),
    [
        (ValueError("no label"), None, "internal", False),
        (MemoryError(), None, "out-of-memory", False),
        (OSError(errno.ENOSPC, "full"), None, "storage-full", False),
        (OSError(errno.EIO, "broken"), None, "internal", True),
        (RuntimeError("[/gloo/pair.cc] closed"), 1, "rank-lost", True),
        (RuntimeError("[/gloo/pair.cc] closed"), None, "internal", False),
    ],
)
def test_an_exception_of_the_training_is_classified(
    error: Exception, world_rank: int | None, code: str, retryable: bool
) -> None:
    outcome = Outcome.of_exception(error, "see the log", world_rank)
    assert (outcome.ended, outcome.code, outcome.retryable) == ("failed", code, retryable)
