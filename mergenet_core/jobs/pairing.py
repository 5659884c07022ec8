"""Which weights of two models pair, and on which axes they agree, from names and shapes alone.

Knowledge crosses where an axis means the same in both models (*anchored*), or where the map of one layer's output axis
is carried into the next layer's input axis (*mapped*). A weight that has an axis of neither kind takes no part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from mergenet_core.errors import PairingRefused
from mergenet_core.jobs.anatomy import ANCHORS, BASES, KNOWN, Anatomy, Form, Kind, read_anatomy
from mergenet_core.jobs.facts import ModelFacts
from mergenet_core.jobs.matching import Anchors, by_name, by_role
from mergenet_core.jobs.pairs import AxisPair, PairedMethod, Pairing, WeightPair
from mergenet_core.jobs.spec import TransferSpec

__all__ = ["Pairing", "pair"]

_ENTRANCE: dict[Kind, str] = {"encoder": "vocabulary", "vit": "patches", "mlp": "pixels", "cnn": "channels-in"}
"""The axis that data comes in by: if it means something else in the source, nothing behind it means the same."""
_AUTO: dict[Kind, PairedMethod] = {"encoder": "project", "vit": "project", "mlp": "anchored", "cnn": "project"}


def pair(source: ModelFacts, target: ModelFacts, transfer: TransferSpec) -> Pairing:
    """Find the pairs of a transfer.

    Raises: `PairingRefused` where nothing pairs, the models share no axis, or the rank is above the matrices.
    """
    if transfer.pairs is not None:
        return _checked(by_name(source, target, transfer.pairs), target, transfer, "lpka", "named", {}, {}, None)
    theirs, ours = read_anatomy(source.shapes), read_anatomy(target.shapes)
    for side, anatomy, facts in (("source", theirs, source), ("target", ours, target)):
        if anatomy is None:
            raise PairingRefused(
                f"the weights of the {side} (model_type {facts.config.get('model_type')!r}) have no known roles; known "
                f"are {KNOWN}. Use one of these, or name the pairs: transfer.method: lpka with transfer.pairs"
            )
    assert theirs is not None
    assert ours is not None
    if theirs.kind != ours.kind:
        raise PairingRefused(
            f"source ({theirs.kind}) and target ({ours.kind}) have no weights of the same role. Use models of one "
            "kind, or name the pairs: transfer.method: lpka with transfer.pairs"
        )
    method = _AUTO[ours.kind] if transfer.method == "auto" else transfer.method
    anchors = _anchors(source, target, theirs, ours)
    entrance = _ENTRANCE[ours.kind]
    if method != "lpka" and entrance not in anchors:
        raise PairingRefused(
            f"method {method} needs an axis that means the same in both models, and {entrance} is not shared. It would "
            f"be with {ANCHORS[entrance]}; without any, name transfer.method: lpka"
        )
    found, axes, unpaired = by_role(theirs, ours, anchors, _heads(source, target), carried=method != "lpka")
    found, left_out = _included(found, transfer)
    basis = next((part.name for part in theirs.parts if part.role in BASES), None)
    return _checked(found, target, transfer, method, ours.kind, axes, unpaired | left_out, basis)


def _anchors(source: ModelFacts, target: ModelFacts, theirs: Anatomy, ours: Anatomy) -> Anchors:
    """The axes that mean the same in both models, with the source's order where it differs."""
    shared: dict[str, tuple[int, ...] | None] = {}
    if source.vocabulary is not None and source.vocabulary == target.vocabulary:
        shared["vocabulary"] = None
    if not _differ(source, target, "image_size", "patch_size") and not _only_one_is_roberta(source, target):
        shared["positions"] = None
    shared["specials"] = None
    for axis in ("pixels", "channels-in", "patches"):
        mine, other = (_entry_shapes(anatomy, axis) for anatomy in (ours, theirs))
        if mine and mine == other and not _differ(source, target, "image_size" if axis == "pixels" else "num_channels"):
            shared[axis] = None
    if source.labels and target.labels and set(target.labels) <= set(source.labels):
        same = source.labels == target.labels
        shared["labels"] = None if same else tuple(source.labels.index(label) for label in target.labels)
    return shared


def _differ(source: ModelFacts, target: ModelFacts, *fields: str) -> bool:
    """Whether both configs say what they are, and not the same; a config from scratch may leave a default out."""
    said = [(source.config.get(field), target.config.get(field)) for field in fields]
    return any(None not in both and both[0] != both[1] for both in said)


def _only_one_is_roberta(source: ModelFacts, target: ModelFacts) -> bool:
    """RoBERTa's positions start behind its padding token's, so that they do not go with another's."""
    return len({"roberta" in str(facts.config.get("model_type")) for facts in (source, target)}) > 1


def _entry_shapes(anatomy: Anatomy, axis: str) -> set[tuple[int, ...]]:
    """What a weight reads from an axis; a filter's kernel may differ, a patch is read whole."""
    return {part.shape[1:2] if axis == "channels-in" else part.shape[1:] for part in anatomy.parts if part.inp == axis}


def _heads(source: ModelFacts, target: ModelFacts) -> tuple[int, int]:
    default = 12  # as in every transformers config of these families
    mine, other = (
        facts.config.get("num_attention_heads", facts.config.get("n_heads", default)) for facts in (target, source)
    )
    return other, mine


def _included(pairs: list[WeightPair], transfer: TransferSpec) -> tuple[list[WeightPair], dict[str, str]]:
    def kept(role: str) -> bool:
        if transfer.include == "embeddings":
            return role.startswith("embeddings.")
        return not {"all": False, "body": role.startswith("embeddings."), "no-head": role.startswith("head.")}[
            transfer.include
        ]

    left_out = {
        entry.target: f"left out by transfer.include: {transfer.include}" for entry in pairs if not kept(entry.role)
    }
    return [entry for entry in pairs if kept(entry.role)], left_out


def _checked(
    pairs: list[WeightPair],
    target: ModelFacts,
    transfer: TransferSpec,
    method: PairedMethod,
    kind: Kind | Literal["named"],
    axes: dict[str, AxisPair],
    unpaired: dict[str, str],
    basis: str | None,
) -> Pairing:
    if method == "lpka":  # it re-encodes matrices; a vector has no factors
        unpaired |= {entry.target: "a vector has no re-encoding" for entry in pairs if not _is_matrix(entry)}
        pairs = [entry for entry in pairs if _is_matrix(entry)]
    matrices = [entry for entry in pairs if _is_matrix(entry)]
    if not matrices:
        raise PairingRefused(
            f"no weights pair with transfer.include: {transfer.include}"
            + (f" ({'; '.join(sorted(set(unpaired.values())))})" if unpaired else "")
            + ". Choose models that share more, or include: all"
        )
    narrowest = _narrowest(matrices, axes)
    if transfer.rank is not None and transfer.rank > narrowest:
        raise PairingRefused(
            f"transfer.rank {transfer.rank} is above the narrowest paired axis, {narrowest}; use {narrowest} or less, "
            "or leave it out"
        )
    pairs = [
        entry.model_copy(update={"rank": _rank(entry, transfer.rank)}) if _is_matrix(entry) else entry
        for entry in pairs
    ]
    taking_part = {entry.target for entry in pairs}
    reason = "not named in transfer.pairs" if kind == "named" else "not known to this anatomy"
    rest = {  # a number of its own, such as how many batches a norm has seen, is no weight
        name: reason for name, shape in target.shapes.items() if shape and name not in {*taking_part, *unpaired}
    }
    return Pairing(
        method=method,
        kind=kind,
        axes={name: axis for name, axis in axes.items() if any(name in (entry.out, entry.inp) for entry in pairs)},
        pairs=tuple(pairs),
        basis=basis,
        unpaired=unpaired | rest,
        rank=max(entry.rank or 0 for entry in pairs),
        transferable_parameters=sum(
            entry.parameters for entry in pairs if entry.role not in ("norm.mean", "norm.variance")
        ),
    )


def _is_matrix(entry: WeightPair) -> bool:
    return entry.form not in ("vector", "gain")


def _sides(shape: tuple[int, ...], form: Form) -> tuple[int, int]:
    """The two sides of a weight as one matrix; a convolution is out × in·k·k."""
    return (shape[0], math.prod(shape[1:])) if form != "embedding" else (math.prod(shape[:-1]), shape[-1])


def _rank(entry: WeightPair, asked: int | None) -> int:
    smallest = min(*_sides(entry.source_shape, entry.form), *_sides(entry.target_shape, entry.form))
    return min(smallest, asked or max(4, smallest // 4))


def _narrowest(matrices: list[WeightPair], axes: Mapping[str, AxisPair]) -> int:
    """The smallest axis that a map is made for, or of all matrices where no axis is known."""
    met = {name for entry in matrices for name in (entry.out, entry.inp)}
    mapped = [axis.shared_size for name, axis in axes.items() if name in met and not axis.anchored]
    if mapped:
        return min(mapped)
    return min(
        min(*_sides(entry.source_shape, entry.form), *_sides(entry.target_shape, entry.form)) for entry in matrices
    )
