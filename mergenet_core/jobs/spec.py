"""The job document, version 1: what a user writes, the same in YAML, over REST and from the client.

Every model refuses unknown keys and names the nearest known one. `parse` is the only door: it returns a `JobSpec` or
raises `SpecInvalid` with a JSON pointer and a remedy for every fault.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from functools import cache
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mergenet_core.errors import FieldError, SpecInvalid
from mergenet_core.jobs.plain import check_plain

Arm = Literal["transfer", "control", "sham", "distill", "transfer+distill", "copy"]
MethodName = Literal["auto", "project", "anchored", "lpka"]
TaskName = Literal["text-classification", "image-classification"]
NameText = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
_FAULTS_TOLD = 20
"""Nobody corrects thousands of faults at once; looking for each one's nearest key would take minutes."""
PathText = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (`5e-4` is one), and no aliases: a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.\d*|\.?\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Strict(BaseModel):
    """A part of the document: unknown keys are errors, values are never coerced from another type."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSpec(Strict):
    """Where a model comes from: exactly one of `path`, `hub` and `config`."""

    path: PathText | None = None
    """A folder in the Hugging Face layout (config.json, *.safetensors), inside the server's model roots."""
    hub: NameText | None = None
    """A hub id such as `org/name`; only where the operator allows the hub, and only with `revision`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of the hub repository, 40 hexadecimal digits."""
    config: dict[str, Any] | None = None
    """A model from scratch: a transformers config with its `model_type` (also `mergenet-cnn`, `mergenet-mlp`)."""
    tokenizer: PathText | None = None
    """A folder with the tokenizer or image processor; default: its own, and from scratch the source's."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("path", "hub", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub and config, not {' and '.join(given) or 'none of them'}")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together: pin the hub id to a 40-digit commit")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs model_type, such as bert, vit, mergenet-cnn or mergenet-mlp")
        check_plain(self.config)
        return self


class DataSpec(Strict):
    """Labelled examples: a train and a test split, each a file (parquet, JSON lines, CSV) or an image folder."""

    train: PathText
    """A file or folder inside the server's data roots, or the split's name when `hub` is given."""
    test: PathText
    """The split that the report is measured on; always used whole."""
    validation: PathText | None = None
    """The split that selection looks at; default: examples that are held out of `train`."""
    hub: NameText | None = None
    """A hub dataset id; only where the operator allows the hub, and only with `revision`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of the hub dataset, 40 hexadecimal digits."""
    text: NameText = "text"
    """Text classification: the column with the text."""
    image: NameText = "image"
    """Image classification: the column with the image."""
    label: NameText = "label"
    """The column with the label, a string or a whole number."""
    train_limit: Annotated[int, Field(ge=1)] | None = None
    """Use only so many training examples, drawn by the trial's seed, the same in every arm of that seed."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Use only this share of the training split, drawn likewise; the paper uses 0.1."""
    validation_limit: Annotated[int, Field(ge=1)] = 200
    """How many examples are held out of `train` for validation, at most a fifth of it, never trained on."""
    max_length: Annotated[int, Field(ge=2, le=8192)] = 128
    """Text: tokens an example, longer ones are cut."""
    image_size: Annotated[int, Field(ge=4, le=1024)] = 32
    """Images: height and width in pixels after resizing."""

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.train_limit is not None and self.train_fraction != 1.0:
            raise ValueError("give train_limit or train_fraction, not both")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together: pin the hub id to a 40-digit commit")
        return self


class TrainSpec(Strict):
    """How a model learns: the same steps, batches and schedule in every arm."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 32
    """Examples a step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with `momentum`."""
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 5e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Decoupled for AdamW, L2 for SGD; not applied to biases and norms."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD only."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from zero."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null turns clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations on the validation split; default: a tenth of `steps`."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints; default: a fifth of `steps`."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be smaller than steps {self.steps}")
        return self


class SourceSpec(Strict):
    """The model that knowledge comes from. It is frozen while the target learns."""

    model: ModelSpec
    """The source model."""
    data: DataSpec | None = None
    """What the source is trained on first, with `train`; default: it is used as it is."""
    train: TrainSpec | None = None
    """Train the source once before the trials, as a trial of its own (`source`)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The seed of that training, and of the source's weights when they come from a config."""

    @model_validator(mode="after")
    def _trained_on_something(self) -> Self:
        if (self.data is None) != (self.train is None):
            raise ValueError("source.data and source.train go together: what the source learns, and how")
        if self.model.config is not None and self.train is None:
            raise ValueError("a source from a config knows nothing yet: give source.data and source.train, or a path")
        return self


class TargetSpec(Strict):
    """The model that learns, its task and its data."""

    model: ModelSpec
    """The target model; its architecture is never changed."""
    task: TaskName
    """What it learns."""
    data: DataSpec
    """What it learns from, and the test split that the report is measured on."""


class PairSpec(Strict):
    """One pair of weights by name, `*` matching any run of characters: for `lpka`, where no anatomy is known."""

    source: NameText
    """Name or pattern of a source weight; the k-th match goes with the target's k-th."""
    target: NameText
    """Name or pattern of a target weight."""


class DistillSpec(Strict):
    """Output distillation, used by the arms `distill` and `transfer+distill`."""

    loss: Literal["kd", "dkd"] = "kd"
    """Hinton's KD (arXiv 1503.02531), or decoupled KD (arXiv 2203.08679)."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """KD: loss = (1 − w)·CE + w·KD for w ≤ 1, else CE + w·KD; DKD: CE + w·DKD."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    """Softens both distributions; the loss is scaled by its square."""
    target_class_weight: Annotated[float, Field(ge=0)] = 1.0
    """DKD's α."""
    non_target_class_weight: Annotated[float, Field(ge=0)] = 8.0
    """DKD's β."""
    teacher: TrainSpec | None = None
    """Fine-tune a copy of the source, with a head of the target's labels, on the trial's examples first."""


class TransferSpec(Strict):
    """How knowledge moves from the source's weights into the target's."""

    method: MethodName = "auto"
    """`project` once at the start, `anchored` and `lpka` every `cycle` steps; `auto` picks by what is shared."""
    rank: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Rank r of the re-encoding W = B A; default: a quarter of the narrower matrix's smaller side, at least 4."""
    cycle: Annotated[int, Field(ge=1)] = 8
    """T_cycle: a transfer every so many steps, self-learning in between."""
    stop_at: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the steps after which no transfer happens, so that the target can recover."""
    update: Literal["gradient", "hypernetwork"] = "gradient"
    """How `lpka` learns: through the task loss, or towards the weights after the target's step."""
    layers: Annotated[int, Field(ge=1, le=16)] = 2
    """`lpka`: stacked knowledge-transfer layers."""
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    """`lpka`: attention heads of a knowledge-transfer layer."""
    width: Annotated[int, Field(ge=4, le=4096)] = 64
    """`lpka`: token width of a knowledge-transfer layer, a multiple of `heads`."""
    gated: bool = True
    """`lpka`: add a zero-initialised gate and keep the row scale; false is the paper's plain form."""
    gate: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """`anchored`: tanh of the gate at the start; 0 is safe and nearly useless."""
    include: Literal["all", "embeddings", "body", "no-head"] = "all"
    """Which paired weights take part."""
    pairs: list[PairSpec] | None = None
    """Pairs by name; default: found by pairing."""
    distill: DistillSpec | None = None
    """Output distillation for the arms that use it; default settings when an arm needs it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.pairs is not None and self.method != "lpka":
            raise ValueError(f"pairs by name work with method lpka only, not {self.method}; leave pairs out")
        if self.pairs is not None and not self.pairs:
            raise ValueError("pairs is empty: name at least one pair, or leave it out")
        return self


class ResourcesSpec(Strict):
    """What a trial runs on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where the worker has one."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """Tries a trial gets when a worker or machine is lost; a wrong configuration is never tried again."""


class RetentionSpec(Strict):
    """What stays on disk."""

    checkpoints: Annotated[int, Field(ge=1, le=100)] = 2
    """Newest checkpoints kept of each trial while the job runs."""
    keep_trials: bool = False
    """Keep every trial's last checkpoint after the job has succeeded; default: only the artifact stays."""


class JobSpec(Strict):
    """A transfer job: a source, a target, how knowledge moves between them, and the arms that prove it."""

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
    arms: Annotated[list[Arm], Field(min_length=1, max_length=6)] = ["transfer", "control"]
    """The experiment's arms; `control` is the same training without the transfer."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=100)] = [0]
    """Each arm is trained once a seed; the report pairs them."""
    resources: ResourcesSpec = ResourcesSpec()
    """What a trial runs on."""
    retention: RetentionSpec = RetentionSpec()
    """What stays on disk."""
    labels: Annotated[dict[NameText, NameText], Field(max_length=32)] = {}
    """The user's own marks, to filter lists by."""

    @model_validator(mode="after")
    def _arms_and_seeds(self) -> Self:
        for name, values in (("arms", self.arms), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must not repeat: {values}")
        if "transfer" not in self.arms and "transfer+distill" not in self.arms:
            raise ValueError("arms needs transfer (or transfer+distill): that is what the artifact is made of")
        if "control" not in self.arms:
            raise ValueError("arms needs control: without it a gain cannot be told from training itself")
        return self


def parse(document: str | bytes | dict[str, Any]) -> JobSpec:
    """Read a job document given as YAML or JSON text, or as parsed data.

    Raises: `SpecInvalid` with every fault's pointer and remedy.
    """
    data: object = document
    if isinstance(document, (str, bytes)):
        try:
            data = yaml.load(document, Loader=_Loader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise SpecInvalid(f"the document is neither YAML nor JSON: {error}") from None
    if not isinstance(data, dict):
        raise SpecInvalid("the document must be a mapping with name, source, target and train")
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        count = f"{error.error_count()} faults" if error.error_count() > 1 else "a fault"
        faults = tuple(_fault(details) for details in error.errors(include_url=False)[:_FAULTS_TOLD])
        raise SpecInvalid(f"the job document has {count}: {faults[0].message}", errors=faults) from None


def digest(spec: JobSpec) -> str:
    """SHA-256 of a job document, the same in whatever order and notation it was written."""
    return hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the job document, for editors and clients."""
    schema = JobSpec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "MergeNet job, version 1"} | schema


def _fault(details: Any) -> FieldError:
    location = [_shown(str(part), 100) for part in details["loc"]]
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in location)
    where = ".".join(location) or "the document"
    given = _given(details.get("input"))
    if details["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(known)}"
        return FieldError(pointer, f"{where} is not a known key; {hint}")
    if details["type"] == "missing":
        return FieldError(pointer, f"{where} is missing; it is required")
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error":
        return FieldError(pointer, f"{where}: {message}")
    return FieldError(pointer, f"{where}: {message[:1].lower()}{message[1:]} (given: {given})")


def _given(value: object) -> str:
    try:
        return _shown(json.dumps(value, default=repr, ensure_ascii=True), 80)
    except (TypeError, RecursionError):  # keys that only YAML has; nesting that can be read, not written
        return type(value).__name__


def _shown(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _fields_at(location: list[str]) -> list[str]:
    schema = _schema()
    node: dict[str, Any] = schema
    for part in location:
        node = _resolve(node, schema)
        node = node.get("items", {}) if part.isdigit() else node.get("properties", {}).get(part, {})
    return sorted(_resolve(node, schema).get("properties", {}))


@cache
def _schema() -> dict[str, Any]:
    return JobSpec.model_json_schema()


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for choice in [node, *node.get("anyOf", [])]:
        if "$ref" in choice:
            found: dict[str, Any] = schema["$defs"][choice["$ref"].rsplit("/", 1)[-1]]
            return found
    return node
