"""Which weights of two models pair, and on which axes they agree, from names and shapes alone.

Knowledge crosses where an axis means the same in both models (*anchored*), or where the map of one layer's output axis
is carried into the next layer's input axis (*mapped*). A weight that has an axis of neither kind takes no part.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from mergenet_core.errors import PairingRefused
from mergenet_core.jobs.anatomy import ANCHORS, KNOWN, Anatomy, Form, Part, read_anatomy
from mergenet_core.jobs.facts import ModelFacts
from mergenet_core.jobs.records import Record
from mergenet_core.jobs.spec import PairSpec, TransferSpec

PairedMethod = Literal["project", "anchored", "lpka"]
_ENTRANCE = {"encoder": "vocabulary", "mlp": "pixels", "cnn": "channels-in"}
_AUTO: dict[str, PairedMethod] = {"encoder": "project", "mlp": "anchored", "cnn": "project"}


class AxisPair(Record):
    """An axis of the target and the source's axis that stands for it."""

    source: str
    source_size: int
    target_size: int
    anchored: bool
    """It means the same in both models; else a method makes a map for it where it is first met, and carries it on."""
    order: tuple[int, ...] | None = None
    """Anchored by names: the source's place of each entry of the target. None: the same places."""
    heads: tuple[int, int] | None = None
    """Attention heads of source and target that the axis falls into."""

    @property
    def shared_size(self) -> int:
        """Entries of the target's axis that the source can fill."""
        return min(self.source_size, self.target_size)


class WeightPair(Record):
    """A weight of the target and the source's weight that it learns from."""

    source: str
    target: str
    role: str
    form: Form
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    out: str | None = None
    """The target's axis in `Pairing.axes`; None where no anatomy is known."""
    inp: str | None = None
    rank: int | None = None
    """Rank r of the re-encoding; None for vectors."""
    parameters: int
    """Entries of the target's weight that the transfer writes."""


class Pairing(Record):
    """What takes part in a transfer, and why the rest does not."""

    method: PairedMethod
    kind: Literal["encoder", "mlp", "cnn", "named"]
    axes: dict[str, AxisPair]
    """By the target's axis, in the order in which they are met."""
    pairs: tuple[WeightPair, ...]
    """In the order that data passes through the target."""
    basis: str | None = None
    """The source's embedding that the residual stream's map is taken from."""
    unpaired: dict[str, str]
    """Every other weight of the target, with the reason."""
    rank: int
    """The largest rank of a pair's re-encoding."""
    transferable_parameters: int

    @property
    def anchored_axes(self) -> tuple[str, ...]:
        """The axes that mean the same in both models."""
        return tuple(name for name, axis in self.axes.items() if axis.anchored)


def pair(source: ModelFacts, target: ModelFacts, transfer: TransferSpec) -> Pairing:
    """Find the pairs of a transfer.

    Raises: `PairingRefused` where nothing pairs, the models share no axis, or the rank is above the matrices.
    """
    if transfer.pairs is not None:
        return _checked(_by_name(source, target, transfer.pairs), target, transfer, "lpka", "named", {}, {}, None)
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
    found, axes, unpaired = _by_role(theirs, ours, anchors, _heads(source, target), carried=method != "lpka")
    found, left_out = _included(found, transfer)
    basis = next((part.name for part in theirs.parts if part.role == "embeddings.word"), None)
    return _checked(found, target, transfer, method, ours.kind, axes, unpaired | left_out, basis)


def _anchors(
    source: ModelFacts, target: ModelFacts, theirs: Anatomy, ours: Anatomy
) -> dict[str, tuple[int, ...] | None]:
    """The axes that mean the same in both models, with the source's order where it differs."""
    shared: dict[str, tuple[int, ...] | None] = {}
    if source.vocabulary is not None and source.vocabulary == target.vocabulary:
        shared["vocabulary"] = None
    offsets = {"roberta" in str(facts.config.get("model_type")) for facts in (source, target)}
    if len(offsets) == 1:  # RoBERTa's positions start behind its padding token's
        shared["positions"] = None
    shared["segments"] = None
    for axis, fields in (("pixels", ("image_size", "num_channels")), ("channels-in", ("num_channels",))):
        sizes = {tuple(facts.config.get(field) for field in fields) for facts in (source, target)}
        if len(sizes) == 1 and len({_sizes(anatomy.parts).get(axis) for anatomy in (theirs, ours)}) == 1:
            shared[axis] = None
    if source.labels and target.labels and set(target.labels) <= set(source.labels):
        same = source.labels == target.labels
        shared["labels"] = None if same else tuple(source.labels.index(label) for label in target.labels)
    return shared


def _heads(source: ModelFacts, target: ModelFacts) -> tuple[int, int]:
    counts = [facts.config.get("num_attention_heads", facts.config.get("n_heads", 1)) for facts in (source, target)]
    return counts[0], counts[1]


def _by_role(
    theirs: Anatomy,
    ours: Anatomy,
    anchors: Mapping[str, tuple[int, ...] | None],
    heads: tuple[int, int],
    *,
    carried: bool,
) -> tuple[list[WeightPair], dict[str, AxisPair], dict[str, str]]:
    layers = _match_layers(theirs, ours)
    by_role = {(part.role, part.layer): part for part in theirs.parts}
    sizes = _sizes(theirs.parts), _sizes(ours.parts)
    pairs: list[WeightPair] = []
    axes: dict[str, AxisPair] = {}
    unpaired: dict[str, str] = {}
    for mine in ours.parts:
        layer = None if mine.layer is None else layers.get(mine.layer)
        if mine.layer is not None and layer is None:
            unpaired[mine.name] = f"the source has only {theirs.layers} layers"
            continue
        other = by_role.get((mine.role, layer))
        if other is None:
            unpaired[mine.name] = "the source has no weight of this role"
            continue
        if mine.form == "convolution" and mine.shape[2:] != other.shape[2:]:
            unpaired[mine.name] = f"kernel {_size(mine.shape[2:])} here, {_size(other.shape[2:])} in the source"
            continue
        met = {}
        for name, theirs_name in ((mine.out, other.out), (mine.inp, other.inp)):
            if name is None or theirs_name is None:
                continue
            met[name] = AxisPair(
                source=theirs_name,
                source_size=sizes[0][theirs_name],
                target_size=sizes[1][name],
                anchored=name in anchors,
                order=anchors.get(name),
                heads=heads if name.startswith(("queries.", "values.")) else None,
            )
        if carried and (reason := _broken(mine, met, axes, anchors)):
            unpaired[mine.name] = reason
            continue
        axes |= {name: axis for name, axis in met.items() if name not in axes}
        pairs.append(_weight_pair(other, mine, met))
    return pairs, axes, unpaired


def _broken(
    part: Part, met: Mapping[str, AxisPair], axes: Mapping[str, AxisPair], anchors: Mapping[str, tuple[int, ...] | None]
) -> str | None:
    for name, axis in met.items():
        if name in ANCHORS and name not in anchors:
            return f"{name} is not shared; it would be with {ANCHORS[name]}"
        if name in axes and axes[name].source != axis.source:
            return f"{axis.source} of the source does not stand for {name} here: a layer between has no counterpart"
        if name == part.inp and name not in anchors and name not in axes and name != "stream":
            return f"no map arrives on its input axis {name}"
        if name == part.out and part.inp is None and name not in anchors and name not in axes and name != "stream":
            return f"no map arrives on its axis {name}"
    return None


def _match_layers(theirs: Anatomy, ours: Anatomy) -> dict[int, int]:
    """Target layer → source layer: evenly spaced with the last included, along a chain consecutive from the input."""
    count = min(theirs.layers, ours.layers)
    if ours.kind != "encoder":
        return {layer: layer for layer in range(count)}
    spread = [
        [(2 * (k + 1) * total + count) // (2 * count) - 1 for k in range(count)]
        for total in (ours.layers, theirs.layers)
    ]
    return dict(zip(*spread, strict=True))


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


def _by_name(source: ModelFacts, target: ModelFacts, wanted: list[PairSpec]) -> list[WeightPair]:
    pairs: list[WeightPair] = []
    for place, entry in enumerate(wanted):
        matches = []
        for side, pattern, facts in (("source", entry.source, source), ("target", entry.target, target)):
            names = [
                name for name, shape in facts.shapes.items() if len(shape) >= 2 and fnmatch.fnmatchcase(name, pattern)
            ]
            if not names:
                near = difflib.get_close_matches(pattern, list(facts.shapes), n=3, cutoff=0.4)
                raise PairingRefused(
                    f"transfer.pairs.{place}.{side}: {pattern!r} matches no weight of the {side} that has two axes; "
                    f"near are {', '.join(near) or 'none'}"
                )
            matches.append(names)
        if len(matches[0]) != len(matches[1]):
            raise PairingRefused(
                f"transfer.pairs.{place}: {entry.source!r} matches {len(matches[0])} weights and {entry.target!r} "
                f"{len(matches[1])}; the k-th goes with the k-th, so make the counts equal"
            )
        for theirs, mine in zip(*matches, strict=True):
            shapes = tuple(source.shapes[theirs]), tuple(target.shapes[mine])
            form: Form = "convolution" if len(shapes[1]) > 2 else "matrix"
            pairs.append(
                WeightPair(
                    source=theirs, target=mine, role="named", form=form, source_shape=shapes[0], target_shape=shapes[1],
                    parameters=math.prod(shapes[1]),
                )
            )  # fmt: skip
    if repeated := {entry.target for entry in pairs if sum(other.target == entry.target for other in pairs) > 1}:
        raise PairingRefused(
            f"transfer.pairs names {', '.join(sorted(repeated))} more than once; a weight has one source"
        )
    return pairs


def _weight_pair(source: Part, target: Part, axes: Mapping[str, AxisPair]) -> WeightPair:
    parameters = math.prod(target.shape[2:]) if target.form == "convolution" else 1
    for name in (target.out, target.inp):
        if name is not None and name in axes:
            parameters *= axes[name].shared_size
    return WeightPair(
        source=source.name,
        target=target.name,
        role=target.role,
        form=target.form,
        source_shape=source.shape,
        target_shape=target.shape,
        out=target.out,
        inp=target.inp,
        parameters=parameters,
    )


def _checked(
    pairs: list[WeightPair],
    target: ModelFacts,
    transfer: TransferSpec,
    method: PairedMethod,
    kind: Literal["encoder", "mlp", "cnn", "named"],
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
    rest = {
        name: "not known to this anatomy" for name in target.shapes if name not in taking_part and name not in unpaired
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


def _sizes(parts: Iterable[Part]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in parts:
        out, inp = (
            (part.shape[-2], part.shape[-1]) if part.form == "embedding" else (part.shape[0], (*part.shape, 0)[1])
        )
        sizes.setdefault(part.out, out)
        if part.inp is not None:
            sizes.setdefault(part.inp, inp)
    return sizes


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
