"""A model as its logical weights: what reading a model's names and shapes yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergenet_core.architectures.axes import Form, Kind, StoredSlice, axis_sizes
from mergenet_core.architectures.schema import Dimensions, Family
from mergenet_core.spec.json_values import JsonObject


@dataclass(frozen=True)
class LogicalWeight:
    """One weight of a model, seen as a matrix (a convolution: one a kernel position) between two named axes."""

    name: str
    """Its name in the state dict; a slice of a fused weight has its rows behind, `c_attn.weight[0:64]`."""
    role: str
    """The same for the same weight in every layer and every family."""
    layer: int | None
    form: Form
    out: str
    inp: str | None
    shape: tuple[int, ...]
    """Of the weight, outputs first, however it is stored."""
    stored: StoredSlice | None = None


@dataclass(frozen=True)
class ModelStructure:
    """A model, or one tower of several, as its logical weights in the order that data passes through them."""

    family: Family
    dimensions: Dimensions
    weights: tuple[LogicalWeight, ...]
    layers: int
    """As many as the weights show."""
    tower: str = ""
    """The prefix of its body's names without its dot; empty where the model is not made of several."""
    stages: tuple[int, ...] = ()
    """The stage of each block of a CNN; empty where all layers are alike."""
    config: JsonObject = field(default_factory=dict)
    """The config of this tower."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Entries of the state dict that are another weight under a second name."""

    @property
    def kind(self) -> Kind:
        """What kind of network it is."""
        return self.family.kind

    @property
    def head_is_embedding(self) -> bool:
        """Whether the head over the vocabulary is the word embedding, even if no head is stored."""
        return self.dimensions.tied and self.family.ties_its_head

    def sizes(self) -> dict[str, int]:
        """The size of every axis."""
        found: dict[str, int] = {}
        for weight in self.weights:
            out, inp = axis_sizes(weight.shape, weight.form)
            found.setdefault(weight.out, out)
            if weight.inp is not None:
                found.setdefault(weight.inp, inp)
        return found
