"""Every error that a user or an operator can cause, in one tree.

Each has a stable `code`, with which the type of the API's problems ends, and `retryable`. The message names what was
given, what is allowed and what to change.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk, a used-up quota, and a file larger than the system allows."""


@dataclass(frozen=True)
class FieldError:
    """One fault in a document: its JSON pointer (RFC 6901) and what to change there."""

    pointer: str
    message: str


class MergeNetError(Exception):
    """The root of all errors; with `retryable`, the same request or attempt may succeed later."""

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.errors = errors


class SpecInvalid(MergeNetError):
    """The job document itself is wrong: an unknown key, a wrong type, a value out of range."""

    code = "spec-invalid"


class PathRefused(MergeNetError):
    """A path leaves the configured roots, or does not exist inside them."""

    code = "path-refused"


class ModelRefused(MergeNetError):
    """A model cannot be loaded safely: pickled weights, an unknown type, NaN in its weights."""

    code = "model-refused"


class DataRefused(MergeNetError):
    """A dataset cannot be used: empty, a missing column, labels that do not fit, NaN in it."""

    code = "data-refused"


class PairingRefused(MergeNetError):
    """Source and target have nothing in common that the chosen method could transfer."""

    code = "pairing-refused"


class TooLarge(MergeNetError):
    """The job needs more memory or disk than any machine here has."""

    code = "too-large"


class TrainingDiverged(MergeNetError):
    """The training loss is no longer a finite number."""

    code = "training-diverged"


class OutOfMemory(MergeNetError):
    """The device ran out of memory during training."""

    code = "out-of-memory"


class StorageFull(MergeNetError):
    """The disk is full; what was published before stays as it is."""

    code = "storage-full"


class CheckpointInvalid(MergeNetError):
    """A checkpoint or artifact does not match its manifest."""

    code = "checkpoint-invalid"


class DeadlineExceeded(MergeNetError):
    """The job did not end within the time that its document allows."""

    code = "deadline-exceeded"


class StaleAttempt(MergeNetError):
    """A newer attempt owns the trial, so that writes of this one are refused."""

    code = "stale-attempt"


class WorkerLost(MergeNetError):
    """The worker or machine that ran the trial is lost."""

    code = "worker-lost"
    retryable = True


class TrainingCrashed(MergeNetError):
    """The training process ended without saying why."""

    code = "training-crashed"
    retryable = True


class TrainingHung(MergeNetError):
    """The training process no longer answers, or makes no progress."""

    code = "training-hung"
    retryable = True


class RankLost(MergeNetError):
    """A process of a trial on several devices has ended, or no longer answers the others."""

    code = "rank-lost"
    retryable = True


class NodeLost(MergeNetError):
    """A host of a trial on several hosts is lost, or no longer answers."""

    code = "node-lost"
    retryable = True


class HostsDiffer(MergeNetError):
    """The hosts of a fleet do not run the same versions."""

    code = "hosts-differ"


class StateConflict(MergeNetError):
    """The job's state does not allow the request."""

    code = "state-conflict"


class NotFound(MergeNetError):
    """There is no such job, trial, artifact or checkpoint."""

    code = "not-found"


class IdempotencyConflict(MergeNetError):
    """The idempotency key was used before with another job document."""

    code = "idempotency-conflict"


class Unauthenticated(MergeNetError):
    """The request has no API key, or an unknown one."""

    code = "unauthenticated"


class Forbidden(MergeNetError):
    """The API key lacks the scope that the request needs."""

    code = "forbidden"


class BodyTooLarge(MergeNetError):
    """The body of the request is longer than the server accepts."""

    code = "body-too-large"


class TooManyRequests(MergeNetError):
    """A limit of requests or streams is reached; the same request may succeed later."""

    code = "too-many-requests"
    retryable = True


class Unavailable(MergeNetError):
    """Redis or the disk cannot be reached at present."""

    code = "unavailable"
    retryable = True
