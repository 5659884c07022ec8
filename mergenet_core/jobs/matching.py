"""Which weight goes with which: by role and layer where the anatomy is known, else by the names a user gave."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping

from mergenet_core.errors import PairingRefused
from mergenet_core.jobs.anatomy import ANCHORS, Anatomy, Form, Part
from mergenet_core.jobs.facts import ModelFacts
from mergenet_core.jobs.pairs import AxisPair, WeightPair
from mergenet_core.jobs.spec import PairSpec

Anchors = Mapping[str, tuple[int, ...] | None]
"""The axes that mean the same in both models, each with the source's order where it differs."""


def by_role(
    theirs: Anatomy,
    ours: Anatomy,
    anchors: Anchors,
    heads: tuple[int, int],
    *,
    carried: bool,
) -> tuple[list[WeightPair], dict[str, AxisPair], dict[str, str]]:
    """Pairs, the target's axes with the source's, and why the other weights do not pair.

    `carried`: a weight pairs only if each of its axes is anchored, or a map of it arrives or is made there.
    """
    layers = _match_layers(theirs, ours)
    by_role = {(part.role, part.layer): part for part in theirs.parts}
    sizes = axis_sizes(theirs.parts), axis_sizes(ours.parts)
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


def _broken(part: Part, met: Mapping[str, AxisPair], axes: Mapping[str, AxisPair], anchors: Anchors) -> str | None:
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


def by_name(source: ModelFacts, target: ModelFacts, wanted: list[PairSpec]) -> list[WeightPair]:
    """The pairs that a user named, `*` matching any run of characters. Raises: `PairingRefused`."""
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


def axis_sizes(parts: Iterable[Part]) -> dict[str, int]:
    """The size of every axis of a model."""
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
