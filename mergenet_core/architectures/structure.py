"""What pairing says of one model: its parts, what each of their axes stands for, and how they are stored.

An axis name that ends in a layer's number (`ffn.3`) belongs to that layer; the others (`stream`, `vocabulary`) run
through the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mergenet_core.records.record import Record

Form = Literal["matrix", "convolution", "depthwise", "embedding", "vector", "gain"]
Kind = Literal["encoder", "decoder", "fusion", "vit", "mlp", "cnn"]

ANCHORS = {
    "vocabulary": "the same tokenizer, or one with enough of the same entries",
    "positions": "positions counted alike",
    "specials": "segments, which all models have alike",
    "modalities": "marks of text and image, which all models have alike",
    "class-token": "a class token, which all models have alike",
    "places": "the same image and patch size",
    "pixels": "the same image size and channels",
    "channels-in": "the same image channels",
    "patches": "the same patch size and image channels",
    "spans": "answers told by their start and end, which all models have alike",
    "labels": "labels of the same names",
}
"""Axes that can mean the same in two models, and what makes them do so."""
INPUT_AXES = ("vocabulary", "patches", "pixels", "channels-in")
"""The axes that data comes in by: if none is shared, nothing behind it means the same."""
INPUT_EMBEDDINGS = ("embeddings.word", "embeddings.patch")
"""Roles whose weight speaks of the data on one axis and of the residual stream on the other."""
RESIDUAL_AXES = ("stream", "embedded")
"""Axes that run through a model along its skip connections: each has one map, taken from the weight that makes it."""


class StoredSlice(Record):
    """Where a part lies in a model's state dict, if it is not a weight of its own, outputs first."""

    name: str
    transposed: bool = False
    """The weight is kept inputs × outputs."""
    rows: tuple[int, int] | None = None
    """Of a weight that holds several parts: the part's first output and one past its last."""


@dataclass(frozen=True)
class LogicalWeight:
    """One weight of a model, seen as a matrix (a convolution: one a kernel position) between two named axes."""

    name: str
    """Its name in the state dict; a part of a fused weight has its rows behind, `c_attn.weight[0:64]`."""
    role: str
    """The same for the same part in every layer and every family."""
    layer: int | None
    form: Form
    """`gain` is a vector that scales the residual stream; an `embedding` is stored rows × stream; `depthwise` has one
    filter a channel, so that its outputs are its inputs."""
    out: str
    inp: str | None
    shape: tuple[int, ...]
    """Of the part, outputs first, whichever way it is stored."""
    stored: StoredSlice | None = None


@dataclass(frozen=True)
class ModelStructure:
    """A model, or a tower of one, as its parts, in the order that data passes through them."""

    kind: Kind
    family: str
    """Models of one family are built alike: their parts correspond layer by layer."""
    weights: tuple[LogicalWeight, ...]
    layers: int
    tower: str = ""
    """What stands before the names of its body; empty where the model is not made of several."""
    heads: int = 1
    """Attention heads of queries."""
    groups: int = 1
    """Attention heads of keys and values, each read by heads / groups of the queries."""
    prenorm: bool = False
    """Norms stand before attention and feed-forward, outside of the residual stream; else on it."""
    gated: bool = False
    """The feed-forward multiplies two projections."""
    rotary: bool = False
    """Positions turn queries and keys, and no weight holds them."""
    stages: tuple[int, ...] = ()
    """The stage of every block of a CNN; empty where layers are all alike."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the model's config says of this tower."""
    shared_head: bool = False
    """The head that names tokens is the word embedding, whether this model has one or not."""
    tied: dict[str, str] = field(default_factory=dict)
    """Weights that are another weight under a second name."""

    def sizes(self) -> dict[str, int]:
        """The size of every axis."""
        found: dict[str, int] = {}
        for part in self.weights:
            out, inp = axis_sizes(part.shape, part.form)
            found.setdefault(part.out, out)
            if part.inp is not None:
                found.setdefault(part.inp, inp)
        return found


def axis_sizes(shape: tuple[int, ...], form: Form) -> tuple[int, int]:
    """Entries of a part's output and input axis; 1 where it has no input axis."""
    if form == "embedding":
        return shape[-2] if len(shape) > 1 else 1, shape[-1]
    return shape[0], shape[1] if len(shape) > 1 else 1


def matrix_shape(shape: tuple[int, ...], form: Form) -> tuple[int, int]:
    """Rows and columns of a weight seen as one matrix: a convolution is out × in·k·k, an embedding rows × stream."""
    count = math.prod(shape)
    return (count // shape[-1], shape[-1]) if form == "embedding" else (shape[0], count // shape[0])


def axis_kind(name: str) -> str:
    """What an axis is, whichever layer and tower it belongs to: `ffn.3@text_model` is `ffn`."""
    plain = name.partition("@")[0]
    kind, dot, layer = plain.rpartition(".")
    return kind if dot and layer.lstrip("-").isdigit() else plain
