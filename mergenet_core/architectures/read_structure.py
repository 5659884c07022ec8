"""What a weight is, told by its name: its role in the model, and what each of its axes stands for.

A model is read as its towers: each begins at the weight that data comes in by, and what stands before the name of that
weight stands before every name of the tower's body. That is the one place where prefixes matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from mergenet_core.architectures.cnn_names import read_cnn
from mergenet_core.architectures.structure import (
    ANCHORS,
    INPUT_EMBEDDINGS,
    Form,
    Kind,
    LogicalWeight,
    ModelStructure,
    StoredSlice,
)
from mergenet_core.architectures.weight_names import SPELLINGS, Row, Spelling

__all__ = ["ANCHORS", "INPUT_EMBEDDINGS", "KNOWN", "Form", "Kind", "LogicalWeight", "ModelStructure", "read_structure"]

KNOWN = (
    "encoders (bert, roberta, distilbert, electra, clip's text tower), decoders (llama, mistral, qwen2, gpt2), vit and "
    "clip's vision tower, vilt, resnet, mobilenet_v2, mergenet-mlp and mergenet-cnn, and models made of these"
)
_TIED_BY_DEFAULT = {"llama": False}
_Shapes = Mapping[str, tuple[int, ...]]


def read_structure(shapes: _Shapes, config: Mapping[str, Any] | None = None) -> tuple[ModelStructure, ...]:
    """The towers of a model, empty where no table knows it; most models are one tower."""
    config = config or {}
    cnn = read_cnn(shapes)
    if cnn is not None:
        return (replace(cnn, config=config),)
    entrances: dict[str, list[Spelling]] = {}
    for spelling in SPELLINGS:
        for name in shapes:
            if found := re.fullmatch(rf"(?:\w+\.)*?({spelling.base})", name):
                entrances.setdefault(name[: found.start(1)], []).append(spelling)
    towers = [
        tower
        for prefix, spellings in sorted(entrances.items(), key=lambda entry: entry[0])
        if (tower := _read_tower(shapes, prefix, spellings, config)) is not None
    ]
    if len(towers) < 2:
        return tuple(replace(tower, tower="") for tower in towers)
    taken: set[str] = set()
    for place, tower in enumerate(towers):  # a head that two towers could own is the first one's
        towers[place] = replace(tower, weights=tuple(part for part in tower.weights if part.name not in taken))
        taken |= {part.name for part in tower.weights}
    return tuple(towers)


def _read_tower(
    shapes: _Shapes, prefix: str, spellings: Iterable[Spelling], config: Mapping[str, Any]
) -> ModelStructure | None:
    own = _config_of(prefix, config)
    kind = own.get("model_type")
    fitting = [spelling for spelling in spellings if not spelling.types or kind is None or kind in spelling.types]
    if not fitting:
        return None
    spelling, parts = max(
        ((spelling, _match(shapes, prefix, spelling)) for spelling in fitting), key=lambda entry: len(entry[1])
    )
    layers = 1 + max((part.layer for part in parts if part.layer is not None), default=-1)
    if layers == 0:
        return None
    heads = _first(own, ("num_attention_heads", "n_heads", "n_head"), 12)  # as in every config of these families
    tied = bool(own.get("tie_word_embeddings", _TIED_BY_DEFAULT.get(spelling.family, True)))
    structure = ModelStructure(
        kind=spelling.kind,
        family=spelling.family,
        weights=tuple(_axes_of_this_model(parts, layers, tied=tied)),
        layers=layers,
        tower=prefix.rstrip("."),
        heads=heads,
        groups=_first(own, ("num_key_value_heads",), heads) if spelling.rotary else heads,
        prenorm=spelling.prenorm,
        gated=spelling.gated,
        rotary=spelling.rotary,
        config=own,
        shared_head=tied and spelling.kind in ("encoder", "decoder"),
    )
    return _with_ties(structure, shapes) if structure.shared_head else structure


def _match(shapes: _Shapes, prefix: str, spelling: Spelling) -> list[LogicalWeight]:
    found: list[tuple[int, LogicalWeight]] = []
    body = [(name, len(prefix)) for name in shapes if name.startswith(prefix)]
    ends = [(name, start) for name in shapes for start in _starts(name)]
    rows = [(row, body) for row in spelling.body] + [(row, ends) for row in spelling.ends]
    for place, (row, names) in enumerate(rows):
        pattern = _compiled(row.pattern)
        for name, start in names:
            if match := pattern.fullmatch(name, start):
                layer = int(match[1]) if match.groups() else None
                found.append((place, _part(name, tuple(shapes[name]), row, layer)))
    last = max((place for place, part in found if part.layer is not None), default=0)

    def forward(entry: tuple[int, LogicalWeight]) -> tuple[int, int, int]:
        place, part = entry
        if part.layer is not None:
            return (1, part.layer, place)
        return (2 if place > last else 0, 0, place)

    return [part for _, part in sorted(found, key=forward)]


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _starts(name: str) -> list[int]:
    """Where a name can begin, whatever its model hangs in."""
    return [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]


def _part(name: str, shape: tuple[int, ...], row: Row, layer: int | None) -> LogicalWeight:
    out, inp = (axis and axis.format(n=layer, p=(layer or 0) - 1) for axis in (row.out, row.inp))
    if row.transposed:
        shape = shape[::-1]
    if row.form == "embedding" and len(shape) == 1:
        shape = (1, *shape)
    rows = None
    if row.third is not None:
        size = shape[0] // 3
        rows, shape = (row.third * size, (row.third + 1) * size), (size, *shape[1:])
    stored = StoredSlice(name=name, transposed=row.transposed, rows=rows) if row.transposed or rows else None
    own = f"{name}[{rows[0]}:{rows[1]}]" if rows else name
    return LogicalWeight(own, row.role, layer, row.form, out or "", inp, shape, stored)


def _axes_of_this_model(parts: Iterable[LogicalWeight], layers: int, *, tied: bool) -> Iterable[LogicalWeight]:
    """Names that depend on what else the model has: where embeddings are narrower, where there is no pooler."""
    parts = list(parts)
    roles = {part.role for part in parts}
    narrow = "embeddings.project.weight" in roles
    embedded = "embedded" if narrow else "stream"
    renames = {"units.-1": "pixels", "units.last": f"units.{layers - 1}"}
    if "pooler.weight" not in roles:
        renames["pooled"] = "stream"
    if tied:  # a tied head reads what the embeddings write
        renames["transformed"] = embedded
    for part in parts:
        axes = [renames.get(axis or "", axis) for axis in (part.out, part.inp)]
        if part.role.startswith("embeddings.") and not part.role.startswith("embeddings.project"):
            axes = [embedded if axis == "stream" else axis for axis in axes]
        gain = part.role == "tokens.norm.weight" and axes[0] in ("stream", "embedded")
        yield replace(part, out=axes[0] or "", inp=axes[1], form="gain" if gain else part.form)


def _with_ties(structure: ModelStructure, shapes: _Shapes) -> ModelStructure:
    """Takes out the head that is the word embedding under another name."""
    words = next((part for part in structure.weights if part.role == "embeddings.word"), None)
    if words is None:
        return structure
    tied = {part.name: words.name for part in structure.weights if part.role == "tokens.head.weight"}
    bias = next((part.name for part in structure.weights if part.role == "tokens.head.bias"), None)
    if bias is not None:
        doubles = (f"{head.removesuffix('.weight')}.bias" for head in tied)
        tied |= {double: bias for double in doubles if double in shapes and double != bias}
    return replace(structure, weights=tuple(part for part in structure.weights if part.name not in tied), tied=tied)


def _config_of(prefix: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a composite model's config that tells of a tower: `text_config` of `text_model.`."""
    for name in prefix.split("."):
        modality = name.partition("_")[0]
        found = config.get(f"{modality}_config")
        if modality and isinstance(found, Mapping):
            return found
    return config


def _first(config: Mapping[str, Any], names: Iterable[str], default: int) -> int:
    found = next((config[name] for name in names if isinstance(config.get(name), int)), default)
    return int(found)
