"""The words that weights are described by: their forms, their roles' axes, and how a state dict stores them.

An axis name that ends in a layer's number (`ffn.3`) belongs to that layer; the others (`stream`, `vocabulary`) run
through the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

from mergenet_core.records.record import Record

Form = Literal["matrix", "convolution", "depthwise", "embedding", "vector", "gain"]
"""`gain` is a vector that scales the residual stream; an `embedding` is stored rows × stream; `depthwise` has one
filter a channel, so that its outputs are its inputs."""
Kind = Literal["encoder", "decoder", "fusion", "vit", "mlp", "cnn"]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Name → shape of the entries of a state dict."""

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
    "spans": "an answer's start and end, which all models have alike",
    "labels": "labels of the same names",
}
"""Axes that can mean the same in two models, and what the models need for that."""
INPUT_AXES = ("vocabulary", "patches", "pixels", "channels-in")
"""The axes that data enters by: if none is shared, no axis behind them means the same."""
INPUT_EMBEDDINGS = ("embeddings.word", "embeddings.patch")
"""Roles of the weights that lead from the data to the residual stream."""
RESIDUAL_AXES = ("stream", "embedded")
"""Axes that run through a model along its skip connections: each has one map, taken from the weight that makes it."""


class StoredSlice(Record):
    """The slice of a state dict's entry that holds a logical weight, where it is not the whole entry, outputs first."""

    name: str
    transposed: bool = False
    """The weight is stored inputs × outputs."""
    rows: tuple[int, int] | None = None
    """Of an entry that fuses several weights: this weight's first output and one past its last."""


def needed_to_share(axis: str) -> str:
    """What two models need so that one of `ANCHORS` means the same in both, as a clause of a message."""
    return f"sharing it needs {ANCHORS[axis]}"


def axis_sizes(shape: tuple[int, ...], form: Form) -> tuple[int, int]:
    """Entries of a weight's output and input axis; 1 where it has no input axis."""
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
    return kind if dot and layer.isdigit() else plain
