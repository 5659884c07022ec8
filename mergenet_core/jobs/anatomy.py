"""What a weight is, told by its name: its role in the model, and what each of its axes stands for.

An axis name that ends in a layer's number (`ffn.3`) belongs to that layer; the others (`stream`, `vocabulary`) run
through the model. Only these tables know how a library spells its layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Form = Literal["matrix", "convolution", "embedding", "vector", "gain"]
Kind = Literal["encoder", "vit", "mlp", "cnn"]

ANCHORS = {
    "vocabulary": "the same tokenizer",
    "positions": "positions counted alike",
    "specials": "segments and class tokens, which all models have alike",
    "pixels": "the same image size and channels",
    "channels-in": "the same image channels",
    "patches": "the same patch size and image channels",
    "labels": "labels of the same names",
}
"""Axes that can mean the same in two models, and what makes them do so."""
BASES = ("embeddings.word", "embeddings.patch")
"""Roles whose weight speaks of the data on one axis and of the residual stream on the other."""


@dataclass(frozen=True)
class Part:
    """One weight of a model, seen as a matrix (a convolution: one a kernel position) between two named axes."""

    name: str
    role: str
    """The same for the same part in every layer and every family of the anatomy."""
    layer: int | None
    form: Form
    """`gain` is a vector that scales the residual stream; an `embedding` is stored rows × stream."""
    out: str
    inp: str | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Anatomy:
    """A model as its parts, in the order that data passes through them."""

    kind: Kind
    parts: tuple[Part, ...]
    layers: int


# pattern, role, form, output axis, input axis; {n} is the layer's number and {p} the one before it
_Row = tuple[str, str, Form, str, str | None]


def _linear(name: str, role: str, out: str, inp: str) -> list[_Row]:
    return [
        (rf"{name}\.weight", f"{role}.weight", "matrix", out, inp),
        (rf"{name}\.bias", f"{role}.bias", "vector", out, None),
    ]


def _norm(name: str, role: str) -> list[_Row]:
    return [
        (rf"{name}\.weight", f"{role}.weight", "gain", "stream", None),
        (rf"{name}\.bias", f"{role}.bias", "vector", "stream", None),
    ]


def _embeddings(norm: str) -> list[_Row]:
    return [
        (r"embeddings\.word_embeddings\.weight", "embeddings.word", "embedding", "vocabulary", "stream"),
        (r"embeddings\.position_embeddings\.weight", "embeddings.position", "embedding", "positions", "stream"),
        (r"embeddings\.token_type_embeddings\.weight", "embeddings.segment", "embedding", "specials", "stream"),
        *_norm(norm, "embeddings.norm"),
    ]


def _block(
    layer: str, query: str, key: str, value: str, out: str, norm1: str, up: str, down: str, norm2: str
) -> list[_Row]:
    return [
        *_linear(layer + query, "attention.query", "queries.{n}", "stream"),
        *_linear(layer + key, "attention.key", "queries.{n}", "stream"),
        *_linear(layer + value, "attention.value", "values.{n}", "stream"),
        *_linear(layer + out, "attention.out", "stream", "values.{n}"),
        *_norm(layer + norm1, "attention.norm"),
        *_linear(layer + up, "ffn.up", "ffn.{n}", "stream"),
        *_linear(layer + down, "ffn.down", "stream", "ffn.{n}"),
        *_norm(layer + norm2, "ffn.norm"),
    ]


_BERT = [
    *_embeddings(r"embeddings\.LayerNorm"),
    *_block(
        r"encoder\.layer\.(\d+)\.", r"attention\.self\.query", r"attention\.self\.key", r"attention\.self\.value",
        r"attention\.output\.dense", r"attention\.output\.LayerNorm", r"intermediate\.dense", r"output\.dense",
        r"output\.LayerNorm",
    ),
    *_linear(r"(?:pooler\.dense|classifier\.dense)", "pooler", "pooled", "stream"),
    *_linear(r"classifier(?:\.out_proj)?", "head", "labels", "pooled"),
    *_linear(r"qa_outputs", "span", "labels", "stream"),
]  # fmt: skip
_DISTILBERT = [
    *_embeddings(r"embeddings\.LayerNorm"),
    *_block(
        r"transformer\.layer\.(\d+)\.", r"attention\.q_lin", r"attention\.k_lin", r"attention\.v_lin",
        r"attention\.out_lin", r"sa_layer_norm", r"ffn\.lin1", r"ffn\.lin2", r"output_layer_norm",
    ),
    *_linear(r"pre_classifier", "pooler", "pooled", "stream"),
    *_linear(r"classifier", "head", "labels", "pooled"),
    *_linear(r"qa_outputs", "span", "labels", "stream"),
]  # fmt: skip
_VIT_EMBEDDINGS: list[_Row] = [
    (r"embeddings\.patch_embeddings\.projection\.weight", "embeddings.patch", "convolution", "stream", "patches"),
    (r"embeddings\.patch_embeddings\.projection\.bias", "embeddings.patch.bias", "vector", "stream", None),
    (r"embeddings\.cls_token", "embeddings.class", "embedding", "specials", "stream"),
    (r"embeddings\.position_embeddings", "embeddings.position", "embedding", "positions", "stream"),
]
_VIT_END = [*_norm(r"layernorm", "norm"), *_linear(r"classifier", "head", "labels", "stream")]
_VIT = [
    *_VIT_EMBEDDINGS,
    *_block(
        r"layers\.(\d+)\.", r"attention\.q_proj", r"attention\.k_proj", r"attention\.v_proj", r"attention\.o_proj",
        r"layernorm_before", r"mlp\.fc1", r"mlp\.fc2", r"layernorm_after",
    ),
    *_VIT_END,
]  # fmt: skip
_VIT_AS_PUBLISHED = [
    *_VIT_EMBEDDINGS,
    *_block(
        r"encoder\.layer\.(\d+)\.", r"attention\.attention\.query", r"attention\.attention\.key",
        r"attention\.attention\.value", r"attention\.output\.dense", r"layernorm_before", r"intermediate\.dense",
        r"output\.dense", r"layernorm_after",
    ),
    *_VIT_END,
]  # fmt: skip
_MLP = [
    *_linear(r"layers\.(\d+)", "layer", "units.{n}", "units.{p}"),
    *_linear(r"head", "head", "labels", "units.last"),
]
_CNN: list[_Row] = [
    (r"blocks\.(\d+)\.conv\.weight", "conv", "convolution", "channels.{n}", "channels.{p}"),
    (r"blocks\.(\d+)\.norm\.weight", "norm.weight", "vector", "channels.{n}", None),
    (r"blocks\.(\d+)\.norm\.bias", "norm.bias", "vector", "channels.{n}", None),
    (r"blocks\.(\d+)\.norm\.running_mean", "norm.mean", "vector", "channels.{n}", None),
    (r"blocks\.(\d+)\.norm\.running_var", "norm.variance", "vector", "channels.{n}", None),
    *_linear(r"head", "head", "labels", "channels.last"),
]
_TABLES: list[tuple[Kind, list[_Row]]] = [
    ("encoder", _BERT),
    ("encoder", _DISTILBERT),
    ("vit", _VIT),
    ("vit", _VIT_AS_PUBLISHED),
    ("mlp", _MLP),
    ("cnn", _CNN),
]
KNOWN = "BERT-like encoders (bert, roberta, distilbert), vit, mergenet-mlp and mergenet-cnn"


def read_anatomy(shapes: Mapping[str, tuple[int, ...]]) -> Anatomy | None:
    """The anatomy whose names fit, None where no table knows the model; a base model's prefix (`bert.`) may stand."""
    found = [(kind, _match(shapes, table)) for kind, table in _TABLES]
    kind, parts = max(found, key=lambda entry: len(entry[1]))
    layers = 1 + max((part.layer for part in parts if part.layer is not None), default=-1)
    if layers == 0 or not any(part.form in ("embedding", "matrix", "convolution") for part in parts):
        return None
    return Anatomy(kind, tuple(_name_ends(part, layers) for part in parts), layers)


def _match(shapes: Mapping[str, tuple[int, ...]], table: list[_Row]) -> list[Part]:
    parts = []
    for place, (pattern, role, form, out, inp) in enumerate(table):
        compiled = re.compile(rf"(?:[a-z_]+\.)?{pattern}")
        for name, shape in shapes.items():
            if found := compiled.fullmatch(name):
                layer = int(found[1]) if found.groups() else None
                axes = [axis and axis.format(n=layer, p=(layer or 0) - 1) for axis in (out, inp)]
                parts.append((place, Part(name, role, layer, form, axes[0] or "", axes[1], tuple(shape))))
    layered = [place for place, part in parts if part.layer is not None]
    last = max(layered, default=0)

    def forward(entry: tuple[int, Part]) -> tuple[int, int, int]:
        place, part = entry
        if part.layer is not None:
            return (1, part.layer, place)
        return (2 if place > last else 0, 0, place)

    return [part for _, part in sorted(parts, key=forward)]


def _name_ends(part: Part, layers: int) -> Part:
    renames = {"units.-1": "pixels", "channels.-1": "channels-in"}
    renames |= {f"{axis}.last": f"{axis}.{layers - 1}" for axis in ("units", "channels")}
    inp = renames.get(part.inp or "", part.inp)
    return Part(part.name, part.role, part.layer, part.form, part.out, inp, part.shape)
