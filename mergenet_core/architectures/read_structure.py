"""What each weight of a model is, from its name and shape: its role, its layer, and what each of its axes stands for.

A model is read as its towers: each begins at the weight that data enters by, and what precedes the name of that weight
precedes every name of the tower's body. Prefixes matter nowhere else.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mergenet_core.architectures.axes import RESIDUAL_AXES, Shapes, StoredSlice
from mergenet_core.architectures.registry import FAMILIES
from mergenet_core.architectures.schema import Dimensions, Family, WeightSpec
from mergenet_core.architectures.structure import LogicalWeight, ModelStructure
from mergenet_core.spec.json_values import JsonObject

_Found = list[tuple[str, WeightSpec]]
"""The entries of a state dict that a family declares, with their names, in the order that data passes through them."""


def read_structure(shapes: Shapes, config: JsonObject | None = None) -> tuple[ModelStructure, ...]:
    """The towers of a model, empty where no family knows it; most models are one tower.

    Raises: `ValueError` naming an entry of the config that is of a wrong type.
    """
    config = config or {}
    suffixes = _by_suffix(shapes)
    entrances: dict[str, list[Family]] = defaultdict(list)
    for family in FAMILIES:
        for name in suffixes.get(family.entrance, ()):
            entrances[name.removesuffix(family.entrance)].append(family)
    towers = [
        tower
        for prefix, families in sorted(entrances.items(), key=lambda entry: entry[0])
        if (tower := _read_tower(shapes, suffixes, prefix, families, config)) is not None
    ]
    if len(towers) < 2:
        return tuple(replace(tower, tower="") for tower in towers)
    taken: set[str] = set()
    for index, tower in enumerate(towers):  # a head that two towers could own is the first one's
        towers[index] = replace(tower, weights=tuple(weight for weight in tower.weights if weight.name not in taken))
        taken |= {weight.name for weight in tower.weights}
    return tuple(towers)


def _by_suffix(names: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """The names that end in each run of whole components."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for start in (0, *(match.end() for match in re.finditer(r"\.", name))):
            found[name[start:]].append(name)
    return found


def _read_tower(
    shapes: Shapes,
    suffixes: Mapping[str, Sequence[str]],
    prefix: str,
    families: Iterable[Family],
    config: JsonObject,
) -> ModelStructure | None:
    own = _config_of(prefix, config)
    kind = own.get("model_type")
    fitting = [family for family in families if not family.only_own_types or kind is None or kind in family.model_types]
    if not fitting:
        return None
    matches = [(family, _match(shapes, suffixes, prefix, family)) for family in fitting]
    family, found = max(matches, key=lambda entry: (len(entry[1]), kind in entry[0].model_types))
    layers = 1 + max((spec.layer for _, spec in found if spec.layer is not None), default=-1)
    if layers == 0:
        return None
    try:
        dimensions = family.dimensions_of(own)
    except ValueError:
        if kind in family.model_types:
            raise
        return None  # another type, which uses the same names and means something else by its config
    weights = [_logical(name, spec, shapes[name], dimensions) for name, spec in found if spec.role is not None]
    stages = {spec.layer: spec.stage for _, spec in found if spec.stage is not None and spec.layer is not None}
    structure = ModelStructure(
        family=family,
        dimensions=dimensions,
        weights=tuple(_with_axes_of_this_model(weights, tied=dimensions.tied)),
        layers=layers,
        tower=prefix.rstrip("."),
        stages=tuple(stages.values()),
        config=own,
    )
    return _without_tied(structure, shapes) if structure.head_is_embedding else structure


def _match(shapes: Shapes, suffixes: Mapping[str, Sequence[str]], prefix: str, family: Family) -> _Found:
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    found = [(f"{prefix}{spec.name}", spec) for spec in family.body.of_shapes(own) if spec.name in own]
    last = next((spec.out for _, spec in reversed(found) if spec.role is not None), "")
    heads = {spec.name: spec for head in family.heads.values() for spec in head.weights}
    heads |= {spec.name: spec for spec in family.other_heads}
    body = {name for name, _ in found}
    # a head is a sibling of its body, however deep the model is nested
    found += [
        (name, spec.reading(last))
        for spec in heads.values()
        for name in suffixes.get(spec.name, ())
        if name not in body
    ]
    return found


def _logical(name: str, spec: WeightSpec, stored: tuple[int, ...], dimensions: Dimensions) -> LogicalWeight:
    shape = tuple(stored)
    if spec.transposed:
        shape = shape[::-1]
    if spec.form == "embedding" and len(shape) == 1:
        shape = (1, *shape)
    rows = spec.stored_rows(dimensions, shape[0])
    if rows is not None:
        name, shape = f"{name}[{rows[0]}:{rows[1]}]", (rows[1] - rows[0], *shape[1:])
    whole = name.partition("[")[0]
    at = StoredSlice(name=whole, transposed=spec.transposed, rows=rows) if spec.transposed or rows else None
    return LogicalWeight(name, spec.role or "", spec.layer, spec.form, spec.out, spec.inp, shape, at)


def _with_axes_of_this_model(weights: Sequence[LogicalWeight], *, tied: bool) -> Iterable[LogicalWeight]:
    """Resolve axes that depend on what else the model has: narrower embeddings, a pooler, a tied head."""
    roles = {weight.role for weight in weights}
    embedded = "embedded" if "embeddings.project.weight" in roles else "stream"
    same = {"embedded": embedded}
    if "pooler.weight" not in roles:
        same["pooled"] = "stream"
    if tied:  # a tied head reads what the embeddings write
        reads_embedded = any("embedded" in (weight.out, weight.inp) for weight in weights)
        same["transformed"] = embedded if reads_embedded else "stream"
    for weight in weights:
        out, inp = same.get(weight.out, weight.out), weight.inp and same.get(weight.inp, weight.inp)
        gain = weight.role == "tokens.norm.weight" and out in RESIDUAL_AXES
        yield replace(weight, out=out, inp=inp, form="gain" if gain else weight.form)


def _without_tied(structure: ModelStructure, shapes: Shapes) -> ModelStructure:
    """Take out the head that is the word embedding under another name, and its bias's second name."""
    words = next((weight for weight in structure.weights if weight.role == "embeddings.word"), None)
    if words is None:
        return structure
    tied = {weight.name: words.name for weight in structure.weights if weight.role == "tokens.head.weight"}
    bias = next((weight.name for weight in structure.weights if weight.role == "tokens.head.bias"), None)
    if bias is not None:
        doubles = (f"{head.removesuffix('.weight')}.bias" for head in tied)
        tied |= {double: bias for double in doubles if double in shapes and double != bias}
    kept = tuple(weight for weight in structure.weights if weight.name not in tied)
    return replace(structure, weights=kept, tied=tied)


def _config_of(prefix: str, config: JsonObject) -> JsonObject:
    """The tower's own part of a composite model's config: `text_config` for `text_model.`."""
    for name in prefix.split("."):
        modality = name.partition("_")[0]
        found = config.get(f"{modality}_config")
        if modality and isinstance(found, Mapping):
            return found
    return config
