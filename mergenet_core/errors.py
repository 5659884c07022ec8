"""Every error that a user or an operator can cause, in one tree.

Each carries a stable `code` (the last part of the problem type that the API answers with), and whether trying the same
thing again can help. The message says what was given, what is allowed and what to change.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One fault in a document: where it is (a JSON pointer, RFC 6901) and what to change there."""

    pointer: str
    message: str


class MergeNetError(Exception):
    """The root: `code` is stable, `retryable` says whether the same attempt may succeed later."""

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.errors = errors


class SpecInvalid(MergeNetError):
    """The job document is wrong in itself: an unknown key, a wrong type, a value out of range."""

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
    """Source and target share nothing that the chosen method could carry across."""

    code = "pairing-refused"


class TooLarge(MergeNetError):
    """The job needs more memory or disk than any machine here has."""

    code = "too-large"


class TrainingDiverged(MergeNetError):
    """The loss is no longer a finite number."""

    code = "training-diverged"


class OutOfMemory(MergeNetError):
    """The device ran out of memory in training."""

    code = "out-of-memory"


class StorageFull(MergeNetError):
    """The disk is full; what was published before stays as it is."""

    code = "storage-full"


class CheckpointInvalid(MergeNetError):
    """A checkpoint or artifact does not match its manifest."""

    code = "checkpoint-invalid"


class StaleAttempt(MergeNetError):
    """A newer attempt owns the trial: what this one wants to write is refused."""

    code = "stale-attempt"


class WorkerLost(MergeNetError):
    """The process or machine that ran the trial is gone."""

    code = "worker-lost"
    retryable = True


class RankLost(MergeNetError):
    """A process of a trial on several devices is gone, or no longer answers the others."""

    code = "rank-lost"
    retryable = True


class NodeLost(MergeNetError):
    """A host of a trial on several hosts is gone, or no longer answers."""

    code = "node-lost"
    retryable = True


class HostsDiffer(MergeNetError):
    """The hosts of a fleet do not run the same versions."""

    code = "hosts-differ"


class StateConflict(MergeNetError):
    """The job is in a state that does not allow what was asked."""

    code = "state-conflict"


class NotFound(MergeNetError):
    """There is no such job, trial, artifact or checkpoint."""

    code = "not-found"


class IdempotencyConflict(MergeNetError):
    """The idempotency key was used before with another job document."""

    code = "idempotency-conflict"


class Unauthenticated(MergeNetError):
    """The request carries no key, or one that is not known."""

    code = "unauthenticated"


class Forbidden(MergeNetError):
    """The key is known but lacks the scope that the request needs."""

    code = "forbidden"


class BodyTooLarge(MergeNetError):
    """The request's body is longer than the server reads."""

    code = "body-too-large"


class Unavailable(MergeNetError):
    """Redis or the disk cannot be reached just now."""

    code = "unavailable"
    retryable = True
