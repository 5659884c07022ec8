"""Which axes mean the same in two models, and why the others do not, from configs, tokenizers and labels alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mergenet_core.architectures.axes import ANCHORS, needed_to_share
from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.vocabulary_overlap import LEAST_SHARE, overlap
from mergenet_core.spec.json_values import JsonObject

_ALWAYS = ("specials", "modalities", "class-token", "spans")
_UNNAMED = re.compile(r"LABEL_\d+")
_LISTED = 4
"""The most labels that a reason lists."""


@dataclass(frozen=True)
class Anchor:
    """An axis that means the same in both models; with names, which of its entries do."""

    because: str
    order: tuple[int, ...] | None = None
    cover: tuple[int, ...] | None = None
    covered: int | None = None


@dataclass(frozen=True)
class SharedAxes:
    """The axes that both of two towers have, by whether they mean the same."""

    anchors: Mapping[str, Anchor]
    unshared: Mapping[str, str]
    """Axes that mean something else in each, with the reason."""
    undecided: Mapping[str, str]
    """Axes of which only training will know, with what it depends on."""


@dataclass(frozen=True)
class _Undecided:
    """What sharing an axis depends on."""

    reason: str


def shared_axes(
    source: ModelInfo, target: ModelInfo, source_tower: ModelStructure, target_tower: ModelStructure
) -> SharedAxes:
    """Which of the axes that two towers have mean the same in both."""
    towers = source_tower, target_tower
    present = [{axis for weight in tower.weights for axis in (weight.out, weight.inp)} for tower in towers]
    found = {
        axis: _shared(axis, source, target, source_tower, target_tower)
        for axis in ANCHORS
        if all(axis in axes for axes in present)
    }
    return SharedAxes(
        anchors={axis: answer for axis, answer in found.items() if isinstance(answer, Anchor)},
        unshared={axis: answer for axis, answer in found.items() if isinstance(answer, str)},
        undecided={axis: answer.reason for axis, answer in found.items() if isinstance(answer, _Undecided)},
    )


def _shared(
    axis: str, source: ModelInfo, target: ModelInfo, source_tower: ModelStructure, target_tower: ModelStructure
) -> Anchor | _Undecided | str:
    otherwise = needed_to_share(axis)
    configs = source_tower.config, target_tower.config
    if axis in _ALWAYS:
        return Anchor(ANCHORS[axis])
    if axis == "vocabulary":
        return _vocabulary(source, target, source_tower, target_tower) or otherwise
    if axis == "labels":
        return _labels(source, target) or otherwise
    if axis == "positions":
        # RoBERTa's positions start behind its padding token's, so they do not match those of other encoders
        if len({"roberta" in str(config.get("model_type")) for config in configs}) > 1:
            return otherwise
        return Anchor(ANCHORS[axis])
    if axis == "places":
        return otherwise if _differ(configs, "image_size", "patch_size") else Anchor(ANCHORS[axis])
    here, there = (_entry_shapes(tower, axis) for tower in (target_tower, source_tower))
    if here != there:
        return f"{_listed(there)} in the source, {_listed(here)} here; {otherwise}"
    if _differ(configs, "image_size" if axis == "pixels" else "num_channels"):
        return otherwise
    return Anchor(ANCHORS[axis])


def _vocabulary(
    source: ModelInfo, target: ModelInfo, source_tower: ModelStructure, target_tower: ModelStructure
) -> Anchor | str | None:
    if source.vocabulary is None or target.vocabulary is None:
        return None
    if source.vocabulary == target.vocabulary:
        return Anchor("the same tokenizer")
    rows = (tower.sizes()["vocabulary"] for tower in (source_tower, target_tower))
    found = overlap(source.vocabulary, target.vocabulary, *rows)
    if found.share < LEAST_SHARE:
        return (
            f"{len(found.cover):,} entries of the target's tokenizer, {found.share:.0%}, have a counterpart in the "
            f"source's, and {LEAST_SHARE:.0%} is the least; {needed_to_share('vocabulary')}"
        )
    because = f"entries that both tokenizers have, {found.share:.0%} of the target's"
    return Anchor(because, found.order, found.cover, len(found.cover))


def _labels(source: ModelInfo, target: ModelInfo) -> Anchor | _Undecided | None:
    if target.label_column is not None and source.label_column == target.label_column:
        return Anchor(ANCHORS["labels"])
    if target.label_column is not None and source.labels and not _made_up(source.labels):
        return _Undecided(
            f"training shares it if each label in the data's column {target.label_column} is one of the source's "
            f"({', '.join(source.labels[:_LISTED])}{', …' if len(source.labels) > _LISTED else ''})"
        )
    if not source.labels or not target.labels or not set(target.labels) <= set(source.labels):
        return None
    if _made_up((*source.labels, *target.labels)):
        return None
    if source.labels == target.labels:
        return Anchor(ANCHORS["labels"])
    return Anchor(ANCHORS["labels"], tuple(source.labels.index(label) for label in target.labels))


def _made_up(labels: Iterable[str]) -> bool:
    """Whether a library numbered the labels because nobody named them."""
    return all(_UNNAMED.fullmatch(label) for label in labels)


def _differ(configs: tuple[JsonObject, JsonObject], *fields: str) -> bool:
    """Whether both configs have one of the fields with different values; one from scratch may leave a default out."""
    values = [(configs[0].get(field), configs[1].get(field)) for field in fields]
    return any(None not in both and both[0] != both[1] for both in values)


def _entry_shapes(tower: ModelStructure, axis: str) -> set[tuple[int, ...]]:
    """What a weight reads from an axis; a filter's kernel may differ, a patch is read whole."""
    return {
        weight.shape[1:2] if axis == "channels-in" else weight.shape[1:]
        for weight in tower.weights
        if weight.inp == axis
    }


def _listed(shapes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join("×".join(map(str, shape)) for shape in sorted(shapes))
