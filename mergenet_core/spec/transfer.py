"""The part of a job document that describes how knowledge moves."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mergenet_core.spec.data import NameText, Strict
from mergenet_core.spec.train import TrainSpec

MethodName = Literal["auto", "project", "anchored", "lpka", "lpka-raw", "fit"]
Include = Literal["all", "embeddings", "body", "no-head"]
Deliver = Literal["auto", "transfer"]


class PairSpec(Strict):
    """A pair of weights by name, where `*` matches any characters: for `lpka`, with models of unknown structure."""

    source: NameText
    """Name or pattern of source weights; the k-th match is paired with the target's k-th match."""
    target: NameText
    """Name or pattern of target weights."""


class DistillSpec(Strict):
    """Output distillation, used by the arms `distill` and `transfer+distill`.

    What is distilled: the labels' probabilities; in question answering the distributions of the answer's first and last
    token; in language modelling the tokens' at each position to predict; in visual question answering each label's
    probability against the rest; in retrieval each image's captions and each caption's images in the batch.

    Where `target.data` has unlabelled inputs, the teacher's loss is taken on a batch of these, in addition
    to the labelled loss of the labelled batch.
    """

    loss: Literal["kd", "dkd"] = "kd"
    """Hinton's KD (arXiv 1503.02531), or decoupled KD (arXiv 2203.08679); where an input has no label, DKD takes the
    teacher's most probable one. DKD is not for visual question answering, where several labels can be right."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """KD: loss = (1 − w)·L + w·KD for w ≤ 1, else L + w·KD; DKD: L + w·DKD; L is the task's loss."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    """Softens both distributions; the loss is scaled by its square."""
    target_class_weight: Annotated[float, Field(ge=0)] = 1.0
    """DKD's α."""
    non_target_class_weight: Annotated[float, Field(ge=0)] = 8.0
    """DKD's β."""
    pool_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Unlabelled inputs per step, over all devices and micro-batches; default: `train.batch_size`."""
    copies: bool = False
    """Image classification without unlabelled images: take the teacher's loss on the step's images and on a copy of
    each, mixed with another one, shifted and mirrored anew at every step; the teacher reads them in the step."""
    teacher: TrainSpec | None = None
    """First fine-tune a copy of the source, with a head for the target's labels, on the trial's examples."""

    @property
    def task_share(self) -> float:
        """The factor of the labelled loss in a step's loss."""
        return 1.0 - self.weight if self.loss == "kd" and self.weight <= 1 else 1.0


class FitSpec(Strict):
    """Method `fit`: the target's weights are solved from the source's activations on the same inputs.

    The inputs are `target.data`'s unlabelled ones, or the training examples without their labels where there are none.
    """

    inputs: Annotated[int, Field(ge=16, le=1_000_000)] = 512
    """Inputs that the weights are solved on, drawn by the trial's seed."""
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Gradient steps on the stage loss alone behind the closed form, on these inputs, before the training begins."""
    stage_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """The weight of the stage loss in every training step: the distance between the target's activations and the
    source's projected ones, on a batch of the same inputs as the fit's; 0 leaves it out."""


class TransferSpec(Strict):
    """How knowledge moves from the source's weights into the target's."""

    method: MethodName = "auto"
    """`project` transfers once, `anchored` and `lpka` (`lpka-raw`: as released) every `cycle` steps, and `fit` solves
    the weights from activations, for models that need not share any weight's axis. `auto` tries the
    methods that the pair allows and takes at each seed the best on validation if its lead over the control is
    significant, else the control."""
    rank: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Rank r of the re-encoding W = B A; default: a quarter of the smallest side, at least 4, for `lpka` at most 16."""
    cycle: Annotated[int, Field(ge=1)] = 8
    """T_cycle: steps from one transfer to the next, with self-learning in between."""
    back_cycle: Annotated[int, Field(ge=1)] | None = None
    """Two-way: steps from one transfer of the target into the joint source to the next; default: one-way."""
    stop_at: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the steps after which no transfer happens, so that the target can recover."""
    update: Literal["gradient", "hypernetwork"] = "gradient"
    """How `lpka` learns: through the task loss, or towards the weights after the target's step."""
    layers: Annotated[int, Field(ge=1, le=16)] = 2
    """`lpka`: stacked knowledge-transfer layers."""
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    """`lpka`: attention heads of a knowledge-transfer layer."""
    width: Annotated[int, Field(ge=4, le=4096)] = 32
    """`lpka`: token width of a knowledge-transfer layer, a multiple of `heads`."""
    gated: bool = True
    """`lpka`: add a zero-initialised gate and keep the row scale; false is the paper's plain form."""
    gate: Annotated[float, Field(ge=0, le=0.99)] = 0.3
    """`anchored`: tanh of the gate at the start; 0 is safe and nearly useless, at 1 nothing of the target is left."""
    include: Include = "all"
    """Which paired weights are transferred."""
    deliver: Deliver = "auto"
    """Which model the job delivers: `auto`, the transfer's, or the control's where the transfer is shown to harm or is
    behind the control on validation at the chosen seed; `transfer`, always the transfer's."""
    allow_unanchored: bool = False
    """Also transfer where no axis is shared, with maps by size alone; no gain has been measured for that."""
    pairs: Annotated[list[PairSpec], Field(max_length=1000)] | None = None
    """Pairs by name; default: found from the models' structure."""
    fit: FitSpec | None = None
    """Settings of method `fit`; default settings where it is used without."""
    distill: DistillSpec | None = None
    """Output distillation for the arms that use it; default settings when an arm needs it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.pairs is not None and self.method not in ("lpka", "lpka-raw"):
            raise ValueError(f"pairs by name work with methods lpka and lpka-raw, not {self.method}; leave pairs out")
        if self.fit is not None and self.method not in ("fit", "auto"):
            raise ValueError(f"fit has settings of method fit, not of {self.method}; leave fit out")
        if self.method == "fit" and self.include not in ("all", "no-head"):
            raise ValueError(f"method fit solves whole models: include is all or no-head, not {self.include}")
        if self.deliver == "transfer" and self.method == "auto":
            raise ValueError(
                "deliver transfer needs a method by name: method auto delivers the control's model where no transfer "
                "is significantly ahead; name the method, or leave deliver out"
            )
        if self.pairs is not None and not self.pairs:
            raise ValueError("pairs is empty: name at least one pair, or leave it out")
        return self
