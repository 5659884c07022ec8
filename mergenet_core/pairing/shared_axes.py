"""Which axes mean the same in two models, and why the others do not, from configs, tokenizers and labels alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mergenet_core.architectures.axes import ANCHORS
from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.match_weights import Anchor
from mergenet_core.pairing.vocabulary_overlap import LEAST_SHARE, overlap

_ALWAYS = ("specials", "modalities", "class-token", "spans")
_UNNAMED = re.compile(r"LABEL_\d+")


def shared_axes(
    source: ModelInfo, target: ModelInfo, theirs: ModelStructure, ours: ModelStructure
) -> tuple[dict[str, Anchor], dict[str, str]]:
    """The axes that mean the same in both towers, and of those that both have and that do not, the reason."""
    met = {name for part in ours.weights for name in (part.out, part.inp) if name in ANCHORS}
    met &= {name for part in theirs.weights for name in (part.out, part.inp)}
    configs = theirs.config, ours.config
    found: dict[str, Anchor] = {}
    reasons: dict[str, str] = {}
    for name in ANCHORS:
        if name not in met:
            continue
        said = _shared(name, source, target, theirs, ours, configs)
        if isinstance(said, Anchor):
            found[name] = said
        else:
            reasons[name] = said
    return found, reasons


def _shared(
    name: str,
    source: ModelInfo,
    target: ModelInfo,
    theirs: ModelStructure,
    ours: ModelStructure,
    configs: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Anchor | str:
    otherwise = f"it would be with {ANCHORS[name]}"
    if name in _ALWAYS:
        return Anchor(ANCHORS[name])
    if name == "vocabulary":
        return _vocabulary(source, target, theirs, ours) or otherwise
    if name == "labels":
        return _labels(source, target) or otherwise
    if name == "positions":
        # RoBERTa's positions start behind its padding token's, so that they do not go with another's
        if len({"roberta" in str(config.get("model_type")) for config in configs}) > 1:
            return otherwise
        return Anchor(ANCHORS[name])
    if name == "places":
        return otherwise if _differ(configs, "image_size", "patch_size") else Anchor(ANCHORS[name])
    mine, other = (_entry_shapes(structure, name) for structure in (ours, theirs))
    if mine != other:
        return f"{_told(other)} in the source, {_told(mine)} here; {otherwise}"
    if _differ(configs, "image_size" if name == "pixels" else "num_channels"):
        return otherwise
    return Anchor(ANCHORS[name])


def _vocabulary(
    source: ModelInfo, target: ModelInfo, theirs: ModelStructure, ours: ModelStructure
) -> Anchor | str | None:
    if source.vocabulary is None or target.vocabulary is None:
        return None
    if source.vocabulary == target.vocabulary:
        return Anchor("the same tokenizer")
    found = overlap(source.vocabulary, target.vocabulary, theirs.sizes()["vocabulary"], ours.sizes()["vocabulary"])
    if found.share < LEAST_SHARE:
        return (
            f"{len(found.cover):,} entries of the target's tokenizer, {found.share:.0%}, have a counterpart in the "
            f"source's, and {LEAST_SHARE:.0%} is the least; it would be with {ANCHORS['vocabulary']}"
        )
    because = f"entries that both tokenizers have, {found.share:.0%} of the target's"
    return Anchor(because, found.order, found.cover, len(found.cover))


def _labels(source: ModelInfo, target: ModelInfo) -> Anchor | None:
    if not source.labels and not target.labels and source.labels_from_data and target.labels_from_data:
        return Anchor(ANCHORS["labels"])
    if not source.labels or not target.labels or not set(target.labels) <= set(source.labels):
        return None
    if all(_UNNAMED.fullmatch(label) for label in (*source.labels, *target.labels)):
        return None  # names that a library made up
    if source.labels == target.labels:
        return Anchor(ANCHORS["labels"])
    return Anchor(ANCHORS["labels"], tuple(source.labels.index(label) for label in target.labels))


def _differ(configs: tuple[Mapping[str, Any], Mapping[str, Any]], *fields: str) -> bool:
    """Whether both configs say what they are, and not the same; a config from scratch may leave a default out."""
    said = [(configs[0].get(field), configs[1].get(field)) for field in fields]
    return any(None not in both and both[0] != both[1] for both in said)


def _entry_shapes(structure: ModelStructure, axis: str) -> set[tuple[int, ...]]:
    """What a weight reads from an axis; a filter's kernel may differ, a patch is read whole."""
    return {
        part.shape[1:2] if axis == "channels-in" else part.shape[1:] for part in structure.weights if part.inp == axis
    }


def _told(shapes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join("×".join(map(str, shape)) for shape in sorted(shapes))
