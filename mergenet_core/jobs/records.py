"""What is remembered of a job: its state, its trials and their attempts, events, metrics, checkpoints, artifacts.

A *job* is a spec. Its plan is a list of *trials*; each try at one is an *attempt*, and its number is the fencing token:
whoever writes for a trial says which attempt it is, and an old one is refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

JobState = Literal[
    "validating",
    "queued",
    "starting",
    "running",
    "pausing",
    "paused",
    "recovering",
    "cancelling",
    "finalizing",
    "succeeded",
    "failed",
    "cancelled",
]
TrialState = Literal["waiting", "queued", "starting", "running", "succeeded", "failed", "cancelled", "paused"]
TrialKind = Literal["source", "arm", "finalize"]
Request = Literal["pause", "cancel", "checkpoint"]

TERMINAL: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})


class Record(BaseModel):
    """Data that crosses a process: frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Checkpoint(Record):
    """A published checkpoint of a trial: what a next attempt resumes from."""

    step: int
    path: str
    """Folder below the job's folder."""
    manifest_sha256: str
    attempt: int


class ArmCost(Record):
    """What an arm's training cost, evaluation and checkpoints left out."""

    step_seconds: float
    """Median of a target step, transfer and teacher included."""
    train_seconds: float
    """All steps."""
    extra_seconds: float = 0.0
    """What had to come first: fine-tuning the teacher, projecting the source."""


class TrialResult(Record):
    """What a finished trial measured; committed once, by the attempt that owns the trial."""

    steps: int
    final_loss: float
    """Training loss of the last step."""
    metric: str
    """The task's metric, such as `accuracy`; higher is better."""
    last: dict[str, float] = {}
    """Of the last step's weights: `test` and `validation` metric."""
    best: dict[str, float] = {}
    """Of the weights that were best on validation: `test`, `validation` and `step`."""
    metrics: dict[str, float] = {}
    """Every metric of the task over the test split, with the last step's weights."""
    cost: ArmCost
    memory_bytes: int | None = None
    """The most that a process of the trial held: of its GPU's memory, or resident on a CPU."""
    strategy: str | None = None
    """How the model was spread over the processes."""
    parameters: int
    """Trained parameters of the target, the adapter's apart."""
    adapter_parameters: int = 0
    transferred_parameters: int = 0
    """Target parameters that a transfer wrote."""
    versions: dict[str, str] = {}
    data: dict[str, Any] = {}
    """Per split: number of examples and a hash of what was read."""
    source: dict[str, float] = {}
    """A source that learned beside the target: every metric of its own task over its test split."""
    teacher: dict[str, float] = {}
    """Distillation: the teacher's own `test` metric."""


class Way(Record):
    """One of the ways to transfer that `auto` tries."""

    method: str
    include: str

    @property
    def name(self) -> str:
        """Such as `project`, or `project-embeddings` where a part of the weights takes part."""
        return self.method if self.include == "all" else f"{self.method}-{self.include}"


class Trial(Record):
    """One arm at one seed, or the source's own training, or the end of the job (report and artifact)."""

    id: str
    """`source`, `finalize`, or arm and seed as in `transfer-0`; where several ways are tried, `transfer-0-project`."""
    kind: TrialKind
    arm: str | None = None
    seed: int = 0
    way: Way | None = None
    """`auto`: what this trial of the arm `transfer` tries."""
    needs: tuple[str, ...] = ()
    """Trials that must have succeeded before this one is queued."""
    state: TrialState = "waiting"
    attempt: int = 0
    """The number of the newest attempt; 0 before the first."""
    failures: int = 0
    """Attempts that ended in an error that was worth another try."""
    not_before: datetime | None = None
    """After a failure: when the next attempt may begin."""
    worker: str | None = None
    checkpoint: Checkpoint | None = None
    result: TrialResult | None = None
    reason: str | None = None


class Job(Record):
    """The record that decides: RQ only delivers what stands here as queued."""

    id: str
    name: str
    labels: dict[str, str] = {}
    owner: str
    """Name of the API key that posted it."""
    state: JobState
    code: str
    """A stable word for why it is in this state."""
    reason: str
    """The same as a sentence."""
    retryable: bool = False
    request: Request | None = None
    """What a user asked for and has not happened yet."""
    trials: tuple[Trial, ...]
    strategy: str | None = None
    """How a trial's model is spread over its processes, chosen when the job was accepted."""
    memory_bytes: int | None = None
    """What a trial's process needs, by the plan's estimate."""
    nodes: int = 1
    """Hosts that each trial trains on; with more than one, a fleet's workers take them."""
    devices: int = 1
    """Devices of each host that a trial trains on; only hosts that have so many take them."""
    max_attempts: int = 4
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    artifact: str | None = None
    """Folder of the committed artifact below the job's folder; set once."""

    def trial(self, trial_id: str) -> Trial:
        """The trial with that id. Raises: `KeyError`."""
        for trial in self.trials:
            if trial.id == trial_id:
                return trial
        raise KeyError(trial_id)


class Progress(Record):
    """Where a running trial is; overwritten all the time, never history."""

    trial: str
    attempt: int
    step: int
    steps: int
    loss: float | None = None
    metric: float | None = None
    """Newest validation metric."""
    eta_seconds: float | None = None
    """Until the trial's last step."""
    at: datetime


class Event(Record):
    """Something that happened to a job."""

    id: str
    """Its place in the stream; give it as `Last-Event-ID` to go on after it."""
    ts: datetime
    job: str
    trial: str | None = None
    attempt: int | None = None
    type: str
    """Such as `job.state`, `trial.state`, `checkpoint.published`, `progress`."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str
    data: dict[str, Any] = {}


class Metric(Record):
    """One measured number."""

    step: int
    ts: datetime
    name: str
    value: float
    split: Literal["train", "validation", "test"]
    trial: str
    attempt: int


class Artifact(Record):
    """A file of the job's result."""

    path: str
    bytes: int
    sha256: str
    role: str
    """`model`, `adapter`, `report`, `card`, `tokenizer`, `spec` or `manifest`."""


class Manifest(Record):
    """What a published folder holds, written last; a folder is whole when every file here matches."""

    kind: Literal["checkpoint", "artifact"]
    step: int
    files: tuple[Artifact, ...]
    about: dict[str, Any] = {}
    """Hashes of inputs and spec, code version, environment, seeds."""


class Device(Record):
    """A device of a host: a GPU, or a slot on its CPU."""

    id: str
    """Its UUID; for a slot its number."""
    name: str
    memory_bytes: int


class DeviceState(Record):
    """A device as it stands in the ledger."""

    host: str
    """The host's name."""
    ledger: str
    """What the host's ledger goes by; that of GPUs is shared by all containers on one machine."""
    id: str
    name: str
    memory_bytes: int
    state: Literal["free", "held", "quarantined"]
    holder: str | None = None
    """Job, trial, attempt and worker that hold it."""
    reason: str | None = None
    """Why it is not lent."""


class WorkerInfo(Record):
    """A worker that says it is alive."""

    name: str
    host: str
    state: Literal["idle", "busy", "draining"]
    job: str | None = None
    trial: str | None = None
    fleet: bool = False
    """It takes trials on several hosts, and no others; the devices are the fleet's."""
    device: str
    devices: tuple[Device, ...] = ()
    """All that the host has to lend; a fleet worker has none."""
    ledger: str | None = None
    """Where it is noted who holds them."""
    memory_bytes: int
    """Of the device, or of the host where it trains on CPU."""
    cpus: int
    seen_at: datetime
    versions: dict[str, str] = {}


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)
