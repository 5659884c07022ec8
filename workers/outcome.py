"""How an attempt ended, sent from the training process to its supervisor as one JSON document through a pipe.

A pipe rather than a file: it works when the disk is full, and it cannot hold the outcome of an older attempt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import traceback
from typing import Literal

from pydantic import ValidationError
from redis.exceptions import RedisError

from mergenet_core.errors import (
    FULL_DISK,
    MergeNetError,
    ModelRefused,
    OutOfMemory,
    RankLost,
    StorageFull,
    TrainingCrashed,
    Unavailable,
)
from mergenet_core.records.job import TrialResult
from mergenet_core.records.record import Record

OUTCOME_FD = "MERGENET_OUTCOME_FD"
"""Environment variable with the file descriptor that the outcome is written to."""
MESSAGE_LIMIT = 4000
"""Characters; a longer message might not fit into the pipe at once."""
_PIPE_BYTES = 65536
_HARDWARE = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT})


class Outcome(Record):
    """How an attempt ended."""

    ended: Literal["finished", "interrupted", "failed"]
    result: TrialResult | None = None
    artifact: str | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False
    world_rank: int | None = None
    """Of several processes that train together: the one that reported this."""

    @classmethod
    def finished(cls, *, result: TrialResult | None = None, artifact: str | None = None) -> Outcome:
        """The attempt did all of its work."""
        return cls(ended="finished", result=result, artifact=artifact)

    @classmethod
    def interrupted(cls, message: str) -> Outcome:
        """The attempt stopped on request; the trial goes on from its newest checkpoint."""
        return cls(ended="interrupted", message=message[:MESSAGE_LIMIT])

    @classmethod
    def stopped_before_training(cls) -> Outcome:
        """The attempt stopped on request before there was anything to keep."""
        return cls.interrupted("stopped on request before the training began")

    @classmethod
    def of_error(cls, error: MergeNetError | RedisError) -> Outcome:
        """The attempt failed with one of the service's own errors, or because Redis could not be reached."""
        if isinstance(error, RedisError):
            error = Unavailable(f"Redis could not be reached when the attempt began: {error}")
        return cls._failed(error.code, error.message, retryable=error.retryable)

    @classmethod
    def of_exception(cls, error: Exception, where: str, world_rank: int | None = None) -> Outcome:
        """The training raised an exception that is not one of the service's own.

        `where` names what to read for more; `world_rank` is given where several processes train together.
        """
        last = traceback.format_exception_only(error)[-1].strip()
        if world_rank is not None and _is_collective(error):
            return cls.of_error(RankLost(f"rank {world_rank} no longer reaches the others: {last}"))
        number = error.errno if isinstance(error, OSError) else None
        if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
            advice = "take a smaller batch_size, a shorter max_length or a smaller model"
            return cls.of_error(OutOfMemory(f"out of memory: {last}; {advice} ({where})"))
        if number in FULL_DISK:
            return cls.of_error(StorageFull(f"no space left on the disk: {last}; free some, then resume ({where})"))
        # a broken device or disk may be another one next time; a bug is the same bug
        hardware = type(error).__name__ == "AcceleratorError" or number in _HARDWARE
        return cls._failed(MergeNetError.code, f"{last} ({where})", retryable=hardware)

    @classmethod
    def of_panic(cls, error: BaseException, where: str) -> Outcome:
        """Compiled code, such as a tokenizer, panicked on what it was given; it would do so again."""
        message = f"a compiled library panicked on its input: {str(error)[:500]}; check the tokenizer's files ({where})"
        return cls.of_error(ModelRefused(message))

    @classmethod
    def unreported(
        cls,
        process: str,
        status: int | None,
        *,
        stopped: bool = False,
        memory_ran_out: bool = False,
        error: type[MergeNetError] = TrainingCrashed,
    ) -> Outcome:
        """A process ended without reporting an outcome.

        `status` is its exit status, negative for the signal that ended it, None where it is not known. `stopped` means
        that it was asked to stop, `memory_ran_out` that the kernel killed for memory meanwhile, `error` what to call
        the loss otherwise.
        """
        if stopped:
            return cls.interrupted("stopped on request; it goes on from its newest checkpoint")
        if status == -signal.SIGKILL and memory_ran_out:
            message = f"the system ran out of memory and killed {process}; take a smaller batch_size or model"
            return cls.of_error(OutOfMemory(message))
        how = ""
        if status is not None:
            how = f" by signal {signal.Signals(-status).name}" if status < 0 else f" with exit status {status}"
        return cls.of_error(error(f"{process} ended{how} without reporting an outcome; the log may say more"))

    @classmethod
    def _failed(cls, code: str, message: str, *, retryable: bool) -> Outcome:
        return cls(ended="failed", code=code, message=message[:MESSAGE_LIMIT], retryable=retryable)


def is_panic(error: BaseException) -> bool:
    """Whether it is a panic of code in Rust, whose class no module exports."""
    return type(error).__name__ == "PanicException"


def send(descriptor: int, outcome: Outcome) -> None:
    """Write the outcome; it is dropped if the supervisor has ended."""
    with contextlib.suppress(OSError), os.fdopen(descriptor, "wb") as pipe:
        pipe.write(outcome.model_dump_json().encode())


def receive(descriptor: int) -> Outcome | None:
    """Read the outcome of a process that has ended; None if it reported none."""
    os.set_blocking(descriptor, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(descriptor, _PIPE_BYTES):
            text += chunk
    with contextlib.suppress(ValidationError):
        return Outcome.model_validate_json(text)
    return None


def _is_collective(error: Exception) -> bool:
    """Whether a collective operation failed: another process is gone or hangs, and its outcome explains more."""
    by_type = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return by_type or (isinstance(error, RuntimeError) and ("/gloo/" in str(error) or "NCCL" in str(error)))
