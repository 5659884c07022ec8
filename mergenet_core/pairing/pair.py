"""Which weights of two models pair, and on which axes they agree, from names and shapes alone.

Knowledge is transferred where an axis means the same in both models (*anchored*), or where the map of one layer's
output axis is carried into the next layer's input axis (*mapped*). A weight with an axis of neither kind takes no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mergenet_core.architectures.axes import (
    INPUT_AXES,
    INPUT_EMBEDDINGS,
    Kind,
    axis_kind,
    matrix_shape,
    needed_to_share,
)
from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.architectures.registry import known_families
from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.fit_pairing import fit_pairing
from mergenet_core.pairing.match_weights import NO_MAP, Matching, by_name
from mergenet_core.pairing.result import UNANCHORED, AxisPair, PairedMethod, Pairing, WeightPair
from mergenet_core.pairing.shared_axes import SharedAxes, shared_axes
from mergenet_core.spec.job import Include, TransferSpec

__all__ = ["Pairing", "pair"]

_BY_EMBEDDINGS: tuple[tuple[PairedMethod, Include], ...] = (("project", "all"), ("project", "embeddings"))
TRIED: dict[Kind, tuple[tuple[PairedMethod, Include], ...]] = {
    "encoder": _BY_EMBEDDINGS, "decoder": _BY_EMBEDDINGS, "fusion": _BY_EMBEDDINGS, "vit": _BY_EMBEDDINGS,
    "mlp": (("anchored", "all"), ("project", "all")), "cnn": (("project", "all"), ("anchored", "all")),
}  # fmt: skip
"""What method `auto` tries, by the target's kind; the first decides what pairs."""
LPKA_RANK = 16
"""The most tokens a side that `lpka` attends between unless the job sets a rank: more cost time without gain."""
_STORED = "the target stores it transposed or fused with others, which project writes and {} does not"
_TABLE = "a table of embeddings has a row for each entry: an adapter would need more parameters than the table"
_SEVERAL = ("joint",)
"""Axes that the towers of a model have in common."""


def pair(source: ModelInfo, target: ModelInfo, transfer: TransferSpec) -> Pairing:
    """Find the pairs of a transfer.

    Raises: `PairingRefused` where nothing pairs, the models share no axis, or the rank is above the matrices.
    """
    if transfer.pairs is not None:
        named = by_name(source, target, transfer.pairs)
        by: PairedMethod = "lpka-raw" if transfer.method == "lpka-raw" else "lpka"
        return _checked(_Found(method=by, kind="named", pairs=named), target, transfer)
    source_towers, target_towers = (read_structure(model.shapes, model.config) for model in (source, target))
    for side, towers, model in (("source", source_towers, source), ("target", target_towers, target)):
        if not towers:
            raise PairingRefused(
                f"the weights of the {side} (model_type {model.config.get('model_type')!r}) have no known roles; known "
                f"are {known_families()}. Use one of these, or name the pairs: transfer.method: lpka with "
                "transfer.pairs"
            )
    if transfer.method == "fit":
        vocabularies = source.vocabulary, target.vocabulary
        return fit_pairing(
            source_towers, target_towers, same_tokens=None in vocabularies or vocabularies[0] == vocabularies[1]
        )
    method = TRIED[target_towers[0].kind][0][0] if transfer.method == "auto" else transfer.method
    matched = _match_towers((source, source_towers), (target, target_towers), method, transfer)
    pairs, left_out = _included([entry for matching in matched.towers for entry in matching.pairs], transfer)
    found = _Found(
        method=method,
        kind=matched.towers[0].target.kind,
        pairs=pairs,
        axes={name: axis for matching in matched.towers for name, axis in matching.axes.items()},
        unpaired=matched.unpaired | left_out,
        unshared=matched.unshared,
        undecided=matched.undecided,
    )
    return _checked(found, target, transfer)


@dataclass(frozen=True)
class _Found:
    """What pairs before a method's own limits are applied."""

    method: PairedMethod
    kind: Kind | Literal["named"]
    pairs: list[WeightPair]
    axes: Mapping[str, AxisPair] = field(default_factory=dict)
    unpaired: Mapping[str, str] = field(default_factory=dict)
    unshared: Mapping[str, str] = field(default_factory=dict)
    undecided: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _MatchedTowers:
    """The target's towers that pair, and reasons for the rest."""

    towers: list[Matching] = field(default_factory=list)
    unpaired: dict[str, str] = field(default_factory=dict)
    unshared: dict[str, str] = field(default_factory=dict)
    undecided: dict[str, str] = field(default_factory=dict)


_Model = tuple[ModelInfo, tuple[ModelStructure, ...]]
"""A model, and its towers."""


def _match_towers(source: _Model, target: _Model, method: PairedMethod, transfer: TransferSpec) -> _MatchedTowers:
    """Pair each of the target's towers with the source's tower that goes with it best."""
    found = _MatchedTowers()
    refused: list[str] = []
    carried = method not in UNANCHORED
    for tower in target[1]:
        other, shared = _best(source, target[0], tower)
        inputs = [axis for axis in INPUT_AXES if any(axis in (weight.out, weight.inp) for weight in tower.weights)]
        found.unshared |= {_of_tower(axis, tower): reason for axis, reason in shared.unshared.items()}
        found.undecided |= {_of_tower(axis, tower): reason for axis, reason in shared.undecided.items()}
        if carried and not transfer.allow_unanchored and not any(axis in shared.anchors for axis in inputs):
            why = "; ".join(f"{axis} is not shared: {_reason(axis, shared.unshared)}" for axis in inputs)
            refused.append(f"{why}. Shared are {', '.join(shared.anchors) or 'no axes'}")
            found.unpaired |= {weight.name: f"no axis that data enters by is shared: {why}" for weight in tower.weights}
            continue
        matching = Matching(other, tower, shared, carried=carried, free=transfer.allow_unanchored)
        found.unpaired |= matching.unpaired
        found.towers.append(matching)
    if not found.towers:
        raise PairingRefused(
            f"method {method} needs an axis that means the same in both models, where data enters: source "
            f"({', '.join(tower.kind for tower in source[1])}), target "
            f"({', '.join(tower.kind for tower in target[1])}); {'; '.join(refused)}. Take models that share one, or "
            "name transfer.method: lpka, or go on with transfer.allow_unanchored: true"
        )
    if sum(bool(matching.pairs) for matching in found.towers) > 1:
        for matching in found.towers:
            _name_by_tower(matching)
    found.towers = [matching for matching in found.towers if matching.pairs] or found.towers[:1]
    return found


def _best(source: _Model, target: ModelInfo, tower: ModelStructure) -> tuple[ModelStructure, SharedAxes]:
    """The source's tower that shares the target's input and is built most like the target's tower."""
    options = [(other, shared_axes(source[0], target, other, tower)) for other in source[1]]
    return max(
        options,
        key=lambda option: (
            any(axis in option[1].anchors for axis in INPUT_AXES),
            option[0].kind == tower.kind,
            len(option[1].anchors),
        ),
    )


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    return reasons.get(name, needed_to_share(name))


def _of_tower(name: str, tower: ModelStructure) -> str:
    return f"{name}@{tower.tower}" if tower.tower and name not in _SEVERAL else name


def _name_by_tower(matching: Matching) -> None:
    """Give the axes of each tower names of their own, because equal names in two towers mean different axes."""

    def renamed(name: str | None) -> str | None:
        return None if name is None else _of_tower(name, matching.target)

    matching.pairs = [
        entry.model_copy(update={"out": renamed(entry.out), "inp": renamed(entry.inp)}) for entry in matching.pairs
    ]
    matching.axes = {
        renamed(name) or name: axis.model_copy(
            update={"source": _of_tower(axis.source, matching.source), "follows": renamed(axis.follows)}
        )
        for name, axis in matching.axes.items()
    }


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


def _checked(found: _Found, target: ModelInfo, transfer: TransferSpec) -> Pairing:
    method, kind, pairs, axes, unpaired = found.method, found.kind, found.pairs, found.axes, dict(found.unpaired)
    if method in UNANCHORED:  # a vector has neither factors nor rows and columns
        unpaired |= {entry.target: "a vector has no re-encoding" for entry in pairs if not _is_matrix(entry)}
        pairs = [entry for entry in pairs if _is_matrix(entry)]
        tables = [entry.target for entry in pairs if entry.form == "embedding" and kind != "named"]
        unpaired |= dict.fromkeys(tables, _TABLE)
        pairs = [entry for entry in pairs if entry.target not in tables]
    if method != "project":
        unpaired |= {entry.target: _STORED.format(method) for entry in pairs if entry.target_stored}
        pairs = [entry for entry in pairs if entry.target_stored is None]
    if method == "anchored" and transfer.allow_unanchored:
        unmet = _read_before_written(pairs, axes)
        pairs = [entry for entry in pairs if entry.target not in unmet]
        unpaired |= unmet
    if method == "anchored" and any(axis_kind(name) == "keys" for name in axes):
        raise PairingRefused(
            "transfer.method: anchored moves attention heads one by one, and here groups of them share keys and "
            "values; name transfer.method: project"
        )
    matrices = [entry for entry in pairs if _is_matrix(entry)]
    if not matrices:
        raise PairingRefused(
            f"no weights pair with transfer.include: {transfer.include}"
            + (f" ({'; '.join(_causes(unpaired))})" if unpaired else "")
            + ". Choose models that share more, or include: all"
            + ("" if transfer.allow_unanchored else ", or go on without a shared axis: transfer.allow_unanchored: true")
            + ("" if method in UNANCHORED else ", or take transfer.method: lpka, which needs none")
        )
    narrowest = _narrowest(matrices, axes)
    if transfer.rank is not None and transfer.rank > narrowest:
        raise PairingRefused(
            f"transfer.rank {transfer.rank} is above the narrowest paired axis, {narrowest}; use {narrowest} or less, "
            "or leave it out"
        )
    pairs = [
        entry.model_copy(update={"rank": _rank(entry, transfer.rank, method)}) if _is_matrix(entry) else entry
        for entry in pairs
    ]
    taking_part = {entry.target_stored.name if entry.target_stored else entry.target for entry in pairs}
    reason = "not named in transfer.pairs" if kind == "named" else "no role is declared for it"
    explained = {*taking_part, *(name.partition("[")[0] for name in unpaired)}
    rest = {  # a number of its own, such as how many batches a norm has seen, is no weight
        name: reason for name, shape in target.shapes.items() if shape and name not in explained
    }
    return Pairing(
        method=method,
        kind=kind,
        axes={name: axis for name, axis in axes.items() if any(name in (entry.out, entry.inp) for entry in pairs)},
        pairs=tuple(pairs),
        basis=next((axis.basis for axis in axes.values() if axis.basis is not None), None),
        unpaired=unpaired | rest,
        unshared=dict(found.unshared),
        undecided=dict(found.undecided),
        rank=max(entry.rank or 0 for entry in pairs),
        transferable_parameters=sum(
            entry.parameters for entry in pairs if not entry.role.endswith(("norm.mean", "norm.variance"))
        ),
    )


def _read_before_written(pairs: list[WeightPair], axes: Mapping[str, AxisPair]) -> dict[str, str]:
    """The weights that read an axis of which no weight before them makes a map, with the reason."""
    known = {name for name, axis in axes.items() if axis.anchored or axis.basis is not None}
    found = {}
    for entry in pairs:
        if entry.inp is None or entry.inp in known or entry.role in INPUT_EMBEDDINGS:
            known |= {entry.out} if entry.out is not None and _is_matrix(entry) else set()
        else:
            found[entry.target] = f"anchored makes a map where an axis is written, and {entry.inp} is only read"
    return found


def _causes(unpaired: Mapping[str, str]) -> list[str]:
    """Why weights do not pair, without what only follows: behind a weight that does not, no map arrives."""
    reasons = sorted(set(unpaired.values()))
    return [reason for reason in reasons if not reason.startswith(NO_MAP)] or reasons


def _is_matrix(entry: WeightPair) -> bool:
    return entry.form not in ("vector", "gain")


def _smallest_side(entry: WeightPair) -> int:
    return min(*matrix_shape(entry.source_shape, entry.form), *matrix_shape(entry.target_shape, entry.form))


def _rank(entry: WeightPair, given: int | None, method: PairedMethod) -> int:
    smallest = _smallest_side(entry)
    if given is None and method == "lpka":
        return min(smallest, max(4, min(smallest // 4, LPKA_RANK)))
    return min(smallest, given or max(4, smallest // 4))


def _narrowest(matrices: list[WeightPair], axes: Mapping[str, AxisPair]) -> int:
    """The smallest axis that a map is made for, or of all matrices where no axis is known."""
    met = {name for entry in matrices for name in (entry.out, entry.inp)}
    mapped = [axis.shared_size for name, axis in axes.items() if name in met and not axis.anchored]
    if mapped:
        return min(mapped)
    return min(_smallest_side(entry) for entry in matrices)
