"""The job document, version 1: what a user writes, the same in YAML, over REST and from the client.

Unknown keys are refused everywhere. Documents are read by `mergenet_core.spec.parse`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mergenet_core.spec.data import DataSpec, HeldOut, NameText, PathText, Strict
from mergenet_core.spec.json_values import JsonSettings
from mergenet_core.spec.resources import ResourcesSpec, RetentionSpec
from mergenet_core.spec.task_info import TASKS, TaskName
from mergenet_core.spec.train import TrainSpec
from mergenet_core.spec.transfer import Deliver, DistillSpec, FitSpec, Include, MethodName, PairSpec, TransferSpec

__all__ = [
    "DISTILLS",
    "DISTILL_SHAM",
    "SHAMS",
    "Arm",
    "DataSpec",
    "Deliver",
    "DistillSpec",
    "FitSpec",
    "Include",
    "JobSpec",
    "MethodName",
    "ModelSpec",
    "PairSpec",
    "ResourcesSpec",
    "RetentionSpec",
    "SourceSpec",
    "TargetSpec",
    "TaskName",
    "TrainSpec",
    "TransferSpec",
]

Arm = Literal[
    "transfer", "control", "sham", "sham-untrained", "sham-spectrum", "distill", "transfer+distill", "distill-sham",
    "copy",
]  # fmt: skip
SHAMS: tuple[Arm, ...] = ("sham", "sham-untrained", "sham-spectrum")
"""Arms that repeat the transfer from a source without its knowledge."""
DISTILL_SHAM: Arm = "distill-sham"
"""The arm that repeats the distillation from a teacher without the source's knowledge."""
DISTILLS: tuple[Arm, ...] = ("distill", "transfer+distill", DISTILL_SHAM)
"""Arms that learn from a teacher's outputs."""


class ModelSpec(Strict):
    """Where a model comes from: exactly one of `path`, `hub`, `config` and, for a source, `pack`."""

    path: PathText | None = None
    """A folder in the Hugging Face layout (config.json, *.safetensors), inside the server's model roots."""
    hub: NameText | None = None
    """A hub id such as `org/name`; only where the operator allows the hub, and only with `revision`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of the hub repository, 40 hexadecimal digits."""
    config: JsonSettings | None = None
    """A model from scratch: a transformers config with its `model_type` (or one built in, such as `mergenet-cnn`)."""
    pack: PathText | None = None
    """Source only: a file that `mergenet pack` wrote, inside the model roots; the source itself is not needed."""
    tokenizer: PathText | None = None
    """A folder with the tokenizer or image processor; default: its own; from scratch, the source's."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("path", "hub", "config", "pack") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"give exactly one of path, hub, config and, for a source, pack, not {found}")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together: pin the hub id to a 40-digit commit")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs model_type, such as bert, vit, mergenet-cnn or mergenet-mlp")
        return self


class SourceSpec(Strict):
    """The model that knowledge comes from."""

    model: ModelSpec
    """The source model."""
    mode: Literal["frozen", "joint", "trajectory", "self"] = "frozen"
    """`frozen`: used as it is; `joint`: trained together with the target; `trajectory`: its states during a training,
    one after another; `self`: the target itself, which learns from its own re-encoding."""
    states: Annotated[int, Field(ge=2, le=1000)] = 4
    """`trajectory`: states kept of the source's training, evenly spaced, with the last one; a pack brings its own."""
    data: DataSpec | None = None
    """What the source is trained on, with `train`; default: it is used as it is."""
    task: TaskName | None = None
    """What the source learns from `data`; default: the target's task."""
    train: TrainSpec | None = None
    """How the source is trained: once before the arms, in the trial `source`; with mode joint, in every trial."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The seed of that training, and of the source's weights when they come from a config."""
    rank: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Use a frozen source's matrices at this rank; the loss curve equals that of its pack of this rank, bit for bit."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """With `rank`: the number format of that pack."""

    @property
    def trained_first(self) -> bool:
        """Whether it is trained once, before the trials that need it."""
        return self.train is not None and self.mode not in ("joint", "self")

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps of its training after which a state is kept, the oldest first."""
        if self.mode != "trajectory" or self.train is None:
            return ()
        return tuple(round(state * self.train.steps / self.states) for state in range(1, self.states + 1))

    @model_validator(mode="after")
    def _trained_on_something(self) -> Self:
        if (self.data is None) != (self.train is None):
            raise ValueError("source.data and source.train go together: what the source learns, and how")
        if self.task is not None and self.train is None:
            raise ValueError("source.task is what the source is trained on: give source.data and source.train")
        if self.mode == "self":
            if self.train is not None or self.rank is not None:
                raise ValueError("with mode self the source is the target: leave data, train and rank out")
            return self
        if self.model.config is not None and self.train is None:
            raise ValueError("a source from a config is untrained: give source.data and source.train, or a path")
        if self.model.pack is not None and (self.train is not None or self.rank is not None):
            raise ValueError("a pack is frozen, at a rank of its own: leave train, data and rank out")
        if (self.rank is None and self.dtype != "float32") or (self.rank is not None and self.mode == "joint"):
            raise ValueError("rank and dtype are for a frozen source, and dtype needs rank; leave them out")
        if self.mode == "joint" and self.train is None:
            raise ValueError("a joint source is trained together with the target: give source.data and source.train")
        if self.mode == "trajectory" and self.train is None and self.model.pack is None:
            raise ValueError(
                "a trajectory needs a training: give source.data and source.train, or a pack of checkpoints"
            )
        if self.mode == "trajectory" and self.train is not None and self.states > self.train.steps:
            raise ValueError(f"source.states {self.states} is more than source.train.steps {self.train.steps}")
        return self


class TargetSpec(Strict):
    """The model that learns, its task and its data."""

    model: ModelSpec
    """The target model; its architecture is never changed."""
    task: TaskName
    """What it learns."""
    data: DataSpec
    """What it learns from, and the test split that the report is measured on."""


class JobSpec(Strict):
    """A transfer job: a source, a target, how knowledge moves between them, and the arms to compare."""

    version: Literal[1] = 1
    """The version of this document."""
    name: NameText
    """What the job is called in lists."""
    source: SourceSpec
    """The model that knowledge comes from."""
    target: TargetSpec
    """The model that learns."""
    transfer: TransferSpec = TransferSpec()
    """How knowledge moves."""
    train: TrainSpec
    """How the target learns, in every arm."""
    arms: Annotated[list[Arm], Field(min_length=1, max_length=9)] = ["transfer", "control"]
    """The experiment's arms; `control` is the same training without the transfer."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=100)] = [0]
    """Each arm is trained once per seed; the report compares arms seed by seed."""
    resources: ResourcesSpec = ResourcesSpec()
    """What a trial runs on."""
    retention: RetentionSpec = RetentionSpec()
    """What stays on disk."""
    labels: Annotated[dict[NameText, NameText], Field(max_length=32)] = {}
    """Names and values of the user's own, by which lists can be filtered."""

    @property
    def distilling_arms(self) -> tuple[Arm, ...]:
        """The arms that learn from a teacher's outputs."""
        return tuple(arm for arm in self.arms if arm in DISTILLS)

    @property
    def pool_batch_size(self) -> int:
        """Inputs per step whose labels are not used, of an arm that distils from them or matches activations."""
        given = self.transfer.distill and self.transfer.distill.pool_batch_size
        return given or self.train.batch_size

    @property
    def may_fit(self) -> bool:
        """Whether a trial may train with method `fit`: `auto` tries it where there are unlabelled inputs."""
        if self.transfer.method != "auto":
            return self.transfer.method == "fit"
        whole = self.source.mode == "frozen" and self.source.model.pack is None and self.source.rank is None
        return whole and self.target.data.has_unlabelled

    @property
    def source_task(self) -> TaskName:
        """What the source learns where the job trains it."""
        return self.source.task or self.target.task

    @model_validator(mode="after")
    def _arms_and_seeds(self) -> Self:
        for name, values in (("arms", self.arms), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must not repeat: {values}")
        if "transfer" not in self.arms and "transfer+distill" not in self.arms:
            raise ValueError("arms needs transfer (or transfer+distill): that is what the artifact is made of")
        if "control" not in self.arms:
            raise ValueError(
                "arms needs control: only the control separates a gain of the transfer from the effect of training"
            )
        return self

    @model_validator(mode="after")
    def _pack_and_method_fit(self) -> Self:
        if self.target.model.pack is not None:
            raise ValueError("a pack is a source's: give target.model by path, hub or config")
        if self.source.model.pack is not None and self.distilling_arms:
            raise ValueError("a pack cannot be a teacher: leave the distill arms out, or give the source itself")
        spread = "zero3" if self.resources.offload == "parameters" else self.resources.strategy
        if self.transfer.method == "lpka-raw" and spread in ("fsdp2", "zero3"):
            raise ValueError(
                f"lpka-raw needs whole weights, {spread} spreads them over processes: take strategy ddp, zero1 or "
                "zero2, or method lpka, which works on factors"
            )
        return self

    @property
    def held_out(self) -> HeldOut | None:
        """Which examples validate the target where the source is trained on the same file; None if it is not.

        They are those that the source leaves out, so that no validation example is one that the source knows.
        """
        source, target = self.source.data, self.target.data
        if source is None or target.validation is not None or not _same_file(source, target):
            return None
        return HeldOut(None if self.source.mode == "joint" else self.source.seed, source.validation_limit)

    @model_validator(mode="after")
    def _source_does_not_learn_what_measures_the_target(self) -> Self:
        source, target = self.source.data, self.target.data
        if source is None or source.hub != target.hub:
            return self
        for split in ("validation", "test"):
            if getattr(target, split) == source.train:
                raise ValueError(
                    f"target.data.{split} is {source.train}, which the source is trained on: give other examples"
                )
        if self.held_out is not None and source.validation is not None:
            raise ValueError(
                f"source.data.train and target.data.train are both {source.train}, of which the source leaves nothing "
                "out, as it has source.data.validation: give target.data.validation too, or leave the source's out"
            )
        return self

    @model_validator(mode="after")
    def _augmentation_fits(self) -> Self:
        for field, data, task in (
            ("target.data.augment", self.target.data, self.target.task),
            ("source.data.augment", self.source.data, self.source_task),
        ):
            if data is not None and data.augment != "none" and not TASKS[task].augments:
                able = ", ".join(name for name, info in TASKS.items() if info.augments)
                raise ValueError(f"{field} {data.augment} is for {able}, not for {task}; leave it out")
        distilling = " and ".join(self.distilling_arms)
        if distilling and self.target.data.augment != "none":
            raise ValueError(
                f"target.data.augment {self.target.data.augment} changes images at every step, but a teacher's "
                f"logits are computed once per example: leave {distilling} out of arms, or set augment: none"
            )
        return self

    @model_validator(mode="after")
    def _unlabelled_inputs_fit(self) -> Self:
        if self.source.data is not None and self.source.data.has_unlabelled:
            raise ValueError("source.data.unlabelled: the source learns from labels alone; leave it out")
        if not self.target.data.has_unlabelled:
            if self.transfer.distill is not None and self.transfer.distill.pool_batch_size is not None:
                raise ValueError(
                    "transfer.distill.pool_batch_size counts unlabelled inputs: give target.data.unlabelled or "
                    "unlabelled_from_train, or leave it out"
                )
            return self
        if self.transfer.method not in ("fit", "auto") and not self.distilling_arms:
            raise ValueError(
                f"target.data.unlabelled is used by method fit and by the arms {', '.join(DISTILLS)}: name one, "
                "or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _fit_fits(self) -> Self:
        if self.transfer.method != "fit":
            return self
        if self.source.mode != "frozen":
            raise ValueError(f"transfer.method fit needs a frozen source, not mode {self.source.mode}")
        if self.source.model.pack is not None or self.source.rank is not None:
            raise ValueError(
                "transfer.method fit runs the source on inputs, which a pack or a rank of its weights does not allow: "
                "give the source itself, and leave source.rank out"
            )
        if "copy" in self.arms:
            raise ValueError("the arm copy takes over paired weights, and method fit pairs none; leave copy out")
        return self

    @model_validator(mode="after")
    def _copies_fit(self) -> Self:
        if self.transfer.distill is None or not self.transfer.distill.copies:
            return self
        if not TASKS[self.target.task].augments:
            able = ", ".join(name for name, info in TASKS.items() if info.augments)
            raise ValueError(f"transfer.distill.copies is for {able}, not for {self.target.task}; leave it out")
        if self.target.data.has_unlabelled:
            raise ValueError(
                "transfer.distill.copies takes the place of unlabelled images: leave it out, or target.data.unlabelled"
            )
        return self

    @model_validator(mode="after")
    def _changing_source_fits(self) -> Self:
        if self.transfer.back_cycle is not None and self.source.mode != "joint":
            raise ValueError("transfer.back_cycle moves knowledge into the source: give source.mode joint")
        if self.source.mode == "frozen":
            return self
        if self.source.mode in ("joint", "self") and "sham-untrained" in self.arms:
            raise ValueError(
                f"the arm sham-untrained takes the place of a trained source, and a source of mode {self.source.mode} "
                "is in training itself; take sham or sham-spectrum"
            )
        if self.source.mode == "self":
            self._check_self()
        elif self.transfer.method not in ("anchored", "lpka", "lpka-raw"):
            raise ValueError(
                f"a {self.source.mode} source changes during training, and transfer.method {self.transfer.method} "
                "reads it once; take anchored or lpka"
            )
        train = self.source.train
        if self.source.mode == "joint" and train is not None and train.steps != self.train.steps:
            raise ValueError(
                f"a joint source takes one step per step of the target: source.train.steps {train.steps} "
                f"must be train.steps {self.train.steps}"
            )
        if self.source.mode != "trajectory" and (self.distilling_arms or "copy" in self.arms):
            raise ValueError(
                f"the arms distill and copy need a source that is frozen; leave them out with mode {self.source.mode}"
            )
        return self

    def _check_self(self) -> None:
        if self.source.model != self.target.model:
            raise ValueError("with mode self the source is the target: give source.model the values of target.model")
        if self.transfer.method not in ("lpka", "lpka-raw"):
            raise ValueError(
                f"transfer.method {self.transfer.method} maps one model's axes to another's, mode self has one model; "
                "take lpka or lpka-raw"
            )

    @model_validator(mode="after")
    def _batches_stay_whole(self) -> Self:
        several = self.resources.devices * self.resources.nodes
        for field, task, train in (
            ("train", self.target.task, self.train),
            ("source.train", self.source_task, self.source.train),
        ):
            if TASKS[task].contrastive and train is not None and several * train.micro_batches > 1:
                raise ValueError(
                    f"{task} compares the examples of a batch with one another, so a batch must not be split: "
                    f"devices × nodes × {field}.micro_batches is {several * train.micro_batches}, set each to 1"
                )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        processes = self.resources.devices * self.resources.nodes
        if self.target.data.has_unlabelled and self.pool_batch_size % (processes * self.train.micro_batches):
            raise ValueError(
                f"transfer.distill.pool_batch_size {self.pool_batch_size} must be a multiple of devices × nodes × "
                f"train.micro_batches, {self.resources.devices} × {self.resources.nodes} × {self.train.micro_batches}"
            )
        for field, train in (("train", self.train), ("source.train", self.source.train)):
            if train is not None and train.batch_size % (processes * train.micro_batches):
                raise ValueError(
                    f"{field}.batch_size {train.batch_size} must be a multiple of devices × nodes × micro_batches, "
                    f"{self.resources.devices} × {self.resources.nodes} × {train.micro_batches}"
                )
        return self


def _same_file(one: DataSpec, other: DataSpec) -> bool:
    return (one.train, one.hub, one.revision) == (other.train, other.hub, other.revision)
