"""The record of a job: its state, its trials and their results.

A *job* is made from a document. Its plan is a list of *trials*. Each run of a trial is an *attempt*, and the number of
the attempt is the fencing token: every write for a trial names its attempt, and writes of old attempts are refused.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.outcomes import Outcomes
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.records.record import Record

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


class Checkpoint(Record):
    """A published checkpoint of a trial, from which the next attempt resumes."""

    step: int
    path: str
    """Folder below the job's folder."""
    manifest_sha256: str
    attempt: int


class ArmCost(Record):
    """The time of a trial's training, without evaluation and checkpoints."""

    step_seconds: float
    """Median time of a training step, with transfer and teacher."""
    train_seconds: float
    """Time of all steps together."""
    extra_seconds: float = 0.0
    """Time of what came before the steps: fine-tuning the teacher, fitting the target, projecting the source."""
    source_seconds: float = 0.0
    """Mode joint: time of the steps of the source that the target learns from."""


class TrialResult(Record):
    """What a finished trial measured; committed once, by the attempt that owns the trial."""

    steps: int
    final_loss: float
    """Training loss of the last step."""
    metric: str
    """The task's metric, such as `accuracy`; higher is better."""
    last: dict[str, float] = {}
    """The metric on `test` and `validation`, with the weights after the last step."""
    best: dict[str, float] = {}
    """The metric on `test` and `validation`, with the weights that were best on validation, and their `step`."""
    outcomes: Outcomes | None = None
    """The metric's term for each validation example, with the weights after the last step."""
    metrics: dict[str, float] = {}
    """Every metric of the task on the test split, with the weights after the last step."""
    cost: ArmCost
    memory_bytes: int | None = None
    """Peak memory of a process of the trial: of its GPU, or resident memory on a CPU."""
    strategy: str | None = None
    """How the model was spread over the processes."""
    parameters: int
    """Trained parameters of the target, without the adapter's."""
    adapter_parameters: int = 0
    transferred_parameters: int = 0
    """Target parameters that a transfer wrote."""
    versions: dict[str, str] = {}
    data: dict[str, SplitSummary] = {}
    """What was read of each split: `train`, `validation` and `test`."""
    source: dict[str, float] = {}
    """Mode joint: every metric of the source's own task on its test split."""
    teacher: dict[str, float] = {}
    """Distillation: the teacher's own `test` metric."""
    baselines: dict[str, float] = {}
    """The test metric of trivial models fitted to the same labelled examples, by name; of some arms' trials only."""


class Candidate(Record):
    """One method with a selection of weights, which method `auto` tries."""

    method: str
    include: str
    """Which weights are transferred, as in `transfer.include`."""

    @property
    def name(self) -> str:
        """Such as `project`, or `project-embeddings` where only some weights are transferred."""
        return self.method if self.include == "all" else f"{self.method}-{self.include}"


class Trial(Record):
    """One arm at one seed, or the source's own training, or the end of the job (report and artifact)."""

    id: str
    """`source`, `finalize`, or arm and seed as in `transfer-0`; with method `auto`, `transfer-0-project`."""
    kind: TrialKind
    arm: str | None = None
    seed: int = 0
    candidate: Candidate | None = None
    """Method `auto`: what this trial of the arm `transfer` tries."""
    needs: tuple[str, ...] = ()
    """Trials that must have succeeded before this one is queued."""
    state: TrialState = "waiting"
    attempt: int = 0
    """The number of the newest attempt; 0 before the first."""
    failures: int = 0
    """How many attempts crashed or hung and were tried again."""
    losses: int = 0
    """How many attempts were lost with their worker, host or Redis, and were tried again."""
    not_before: datetime | None = None
    """After a failure or loss: when the next attempt may begin, on Redis's clock."""
    worker: str | None = None
    checkpoint: Checkpoint | None = None
    result: TrialResult | None = None
    reason: str | None = None


class Job(Record):
    """The record of a job. It decides what runs; RQ only delivers trials that are queued here."""

    id: str
    name: str
    labels: dict[str, str] = {}
    owner: str
    """Name of the API key that submitted the job."""
    state: JobState
    code: str
    """A stable code for why the job is in this state."""
    reason: str
    """The same as a sentence for users."""
    retryable: bool = False
    request: Request | None = None
    """What a user asked for and what was not done yet."""
    trials: tuple[Trial, ...]
    strategy: str | None = None
    """How a trial's model is spread over its processes, chosen when the job was accepted."""
    memory_bytes: int | None = None
    """The plan's estimate of the memory of a trial's process."""
    nodes: int = 1
    """Hosts that each trial trains on; trials on more than one host are run by fleet workers."""
    devices: int = 1
    """Devices of each host that a trial trains on; only workers on hosts with as many take them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What kind of devices; trials that need CUDA are taken only by workers with GPUs."""
    max_attempts: int = 4
    deadline_seconds: int | None = None
    """Time from the first attempt at a trial to the job's end, after which the job fails."""
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

    def queue_order(self, trial: Trial) -> str:
        """Text by which queued trials are sorted: those of the oldest job first, and in a job what most others need."""
        needed_by = sum(trial.id in other.needs for other in self.trials)
        index = next(index for index, other in enumerate(self.trials) if other.id == trial.id)
        return f"{self.id}/{99_999 - needed_by:05d}{index:05d}/{trial.id}"

    def attempt(self, trial: Trial) -> AttemptRef:
        """The newest attempt at one of the job's trials."""
        return AttemptRef(self.id, trial.id, trial.attempt)

    def next_attempt(self, trial: Trial) -> AttemptRef:
        """The attempt that a worker makes next at one of the job's trials."""
        return AttemptRef(self.id, trial.id, trial.attempt + 1)
