"""Python client of a MergeNet service.

Example::

    from pathlib import Path

    from service.client import Client

    with Client("http://127.0.0.1:8000", "mn_...") as client:
        job = client.submit(Path("job.yaml").read_text())
        for event in client.follow(job.id):  # reconnects by itself
            print(event)
        print(client.report(job.id).sentence)
        client.download(job.id, Path("result"))  # checks the SHA-256 of every file

Every method returns a record with typed fields and raises a `MergeNetError`: the service's own error, or `Unavailable`
when the service does not answer. The names in `__all__` are the public interface; the modules below this package are
internal.
"""

from mergenet_core.errors import (
    BodyTooLarge,
    CheckpointInvalid,
    DataRefused,
    FieldError,
    Forbidden,
    IdempotencyConflict,
    MergeNetError,
    ModelRefused,
    NotFound,
    PairingRefused,
    PathRefused,
    SpecInvalid,
    StateConflict,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mergenet_core.planning.plan import Plan
from mergenet_core.records.api_keys import Scope
from mergenet_core.records.events import Event, Metric, Progress
from mergenet_core.records.job import JobState, Trial, TrialResult, TrialState
from mergenet_core.records.workers import DeviceState, WorkerInfo
from mergenet_core.results.comparisons import Comparison, Difference
from mergenet_core.results.report import ArmReport, Report
from mergenet_core.spec.job import JobSpec
from service.client.client import Client
from service.schemas import (
    ArtifactFile,
    ArtifactList,
    CheckpointList,
    EventPage,
    JobPage,
    JobSummary,
    JobView,
    KeyView,
    Leftover,
    MetricSeries,
    NewKey,
    TrialCheckpoint,
    Validation,
)

__all__ = [
    "ArmReport",
    "ArtifactFile",
    "ArtifactList",
    "BodyTooLarge",
    "CheckpointInvalid",
    "CheckpointList",
    "Client",
    "Comparison",
    "DataRefused",
    "DeviceState",
    "Difference",
    "Event",
    "EventPage",
    "FieldError",
    "Forbidden",
    "IdempotencyConflict",
    "JobPage",
    "JobSpec",
    "JobState",
    "JobSummary",
    "JobView",
    "KeyView",
    "Leftover",
    "MergeNetError",
    "Metric",
    "MetricSeries",
    "ModelRefused",
    "NewKey",
    "NotFound",
    "PairingRefused",
    "PathRefused",
    "Plan",
    "Progress",
    "Report",
    "Scope",
    "SpecInvalid",
    "StateConflict",
    "StorageFull",
    "TooLarge",
    "Trial",
    "TrialCheckpoint",
    "TrialResult",
    "TrialState",
    "Unauthenticated",
    "Unavailable",
    "Validation",
    "WorkerInfo",
]
