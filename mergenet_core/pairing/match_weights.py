"""Which weight goes with which: by role and layer where the structure is known, else by the names a user gave."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping

from mergenet_core.architectures.axes import ANCHORS, INPUT_EMBEDDINGS, RESIDUAL_AXES, Form, axis_kind, needed_to_share
from mergenet_core.architectures.schema import Dimensions
from mergenet_core.architectures.structure import LogicalWeight, ModelStructure
from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.match_layers import match_layers, roles_to_match, with_shared_heads
from mergenet_core.pairing.result import AxisPair, WeightPair
from mergenet_core.pairing.shared_axes import SharedAxes
from mergenet_core.spec.job import PairSpec

NO_MAP = "no map arrives"


class Matching:
    """The pairs of weights of two towers, the axes that correspond, and why the other weights do not pair."""

    def __init__(
        self,
        source: ModelStructure,
        target: ModelStructure,
        shared: SharedAxes,
        *,
        carried: bool,
        free: bool,
    ) -> None:
        """`carried`: a weight pairs only if each of its axes is anchored, or a map of it arrives or is made there.

        `free`: a map may also be made where none arrives.
        """
        self.source, self.target = with_shared_heads(source, target)
        self._anchors, self._shared, self._carried, self._free = shared.anchors, shared, carried, free
        self._sizes = self.source.sizes(), self.target.sizes()
        self.pairs: list[WeightPair] = []
        self.axes: dict[str, AxisPair] = {}
        self.unpaired: dict[str, str] = {}
        self._match()

    def _match(self) -> None:
        layers = match_layers(self.source, self.target)
        sources = dict(roles_to_match(self.source, self.target))
        words = next((part for part in self.source.weights if part.role == "embeddings.word"), None)
        if words is not None and self.source.head_is_embedding:  # its head is the word embedding, read the other way
            head = LogicalWeight(words.name, "tokens.head.weight", None, "matrix", words.out, words.inp, words.shape)
            sources[("tokens.head.weight", None)] = head
        for (role, index), weight in roles_to_match(self.target, self.source):
            layer = None if index is None else layers.get(index)
            if index is not None and layer is None:
                self.unpaired[weight.name] = f"the source has only {self.source.layers} layers"
                if self.target.stages and self.source.layers >= self.target.layers:
                    self.unpaired[weight.name] = "the source's stage has fewer blocks"
                continue
            other = sources.get((role, layer))
            if other is None:
                self.unpaired[weight.name] = self._no_counterpart(weight)
            elif self._carried and weight.form == "convolution" and weight.shape[2:] != other.shape[2:]:
                self.unpaired[weight.name] = (
                    f"kernel {_size(weight.shape[2:])} here, {_size(other.shape[2:])} in the source"
                )
            else:
                self._take(weight, other)
        for name, first in self.target.tied.items():
            self.unpaired[name] = f"it is {first} under another name"

    def _no_counterpart(self, weight: LogicalWeight) -> str:
        if weight.role == "ffn.up.weight" and self.target.family.gated and not self.source.family.gated:
            return "the source's feed-forward is not gated; its one projection goes to the gate"
        if weight.role == "embeddings.position" and self.source.family.rotary:
            return "the source's positions are turns of queries and keys, which no weight holds"
        return "the source has no weight of this role"

    def _take(self, weight: LogicalWeight, other: LogicalWeight) -> None:
        met = {
            name: self._axis(name, axis)
            for name, axis in ((weight.out, other.out), (weight.inp, other.inp))
            if name is not None and axis is not None
        }
        if self._carried and (reason := self._broken(weight, other, met)):
            self.unpaired[weight.name] = reason
            return
        known = [name for name in met if name in self._anchors or (name in self.axes and not self.axes[name].free)]
        for name, axis in met.items():
            if name in self.axes:
                continue
            update: dict[str, object] = {"free": not axis.anchored and not known and not self._leads(axis)}
            if name in RESIDUAL_AXES:
                makers = (*INPUT_EMBEDDINGS, "embeddings.project.weight")
                basis = other if weight.role in makers else _basis(self.source, axis.source)
                update |= {} if basis is None else {"basis": basis.name, "basis_form": basis.form}
            self.axes[name] = axis.model_copy(update=update)
        self.pairs.append(_weight_pair(other, weight, self.axes))

    def _axis(self, name: str, source: str) -> AxisPair:
        anchor = self._anchors.get(name)
        kinds = axis_kind(source), axis_kind(name)
        counts = _heads(self.source.dimensions, kinds[0]), _heads(self.target.dimensions, kinds[1])
        heads = None if counts[0] is None or counts[1] is None else (counts[0], counts[1])
        leader = name.replace(f"{kinds[1]}.", "queries.", 1) if kinds[1] in ("keys", "values", "contexts") else None
        return AxisPair(
            source=source,
            source_size=self._sizes[0][source],
            target_size=self._sizes[1][name],
            anchored=anchor is not None,
            order=anchor.order if anchor else None,
            cover=anchor.cover if anchor else None,
            covered=anchor.covered if anchor else None,
            because=anchor.because if anchor else "",
            heads=heads,
            follows=leader,
            rotary=self.target.family.rotary and kinds[1] in ("queries", "keys"),
        )

    def _leads(self, axis: AxisPair) -> bool:
        return axis.follows is not None and axis.follows in self.axes and not self.axes[axis.follows].free

    def _broken(self, part: LogicalWeight, other: LogicalWeight, met: Mapping[str, AxisPair]) -> str | None:
        for name, axis in met.items():
            if name in ANCHORS and name not in self._anchors:
                if name in self._shared.undecided:
                    return f"{name} may be shared: {self._shared.undecided[name]}"
                return f"{name} is not shared; {self._shared.unshared.get(name, needed_to_share(name))}"
            if name in self.axes and self.axes[name].source != axis.source:
                return f"{axis.source} of the source does not stand for {name} here: a layer between has no counterpart"
            if name in RESIDUAL_AXES and axis.source not in RESIDUAL_AXES:
                return f"the source has no residual stream that could stand for {name} here"
            arrived = name in self._anchors or name in self.axes or (axis.follows or "") in self.axes
            made = part.role in INPUT_EMBEDDINGS or (self._free and part.inp is not None)
            if arrived or (made and part.inp is not None):
                continue
            if name == part.inp:
                return f"{NO_MAP} on its input axis {name}"
            if part.inp is None:
                return f"{NO_MAP} on its axis {name}"
        return None


def _heads(dimensions: Dimensions, axis: str) -> int | None:
    """How many attention heads an axis of this kind falls into; None for one that has none."""
    if axis in ("queries", "contexts"):
        return dimensions.heads
    return dimensions.key_value_heads if axis in ("keys", "values") else None


def _basis(source: ModelStructure, stream: str) -> LogicalWeight | None:
    """The source's weight that leads from the data to its stream, which the stream's map is taken from."""
    makers = [part for part in source.weights if part.role in INPUT_EMBEDDINGS and stream in (part.out, part.inp)]
    projects = [part for part in source.weights if part.role == "embeddings.project.weight" and part.out == stream]
    return next(iter([*projects, *makers]), None)


def by_name(source: ModelInfo, target: ModelInfo, wanted: list[PairSpec]) -> list[WeightPair]:
    """The pairs that a user named, `*` matching any run of characters. Raises: `PairingRefused`."""
    pairs: list[WeightPair] = []
    for index, entry in enumerate(wanted):
        matches = []
        for side, pattern, model in (("source", entry.source, source), ("target", entry.target, target)):
            names = [
                name for name, shape in model.shapes.items() if len(shape) >= 2 and fnmatch.fnmatchcase(name, pattern)
            ]
            if not names:
                near = difflib.get_close_matches(pattern, list(model.shapes), n=3, cutoff=0.4)
                raise PairingRefused(
                    f"transfer.pairs.{index}.{side}: {pattern!r} matches no weight of the {side} that has two axes; "
                    f"near are {', '.join(near) or 'none'}"
                )
            matches.append(names)
        if len(matches[0]) != len(matches[1]):
            raise PairingRefused(
                f"transfer.pairs.{index}: {entry.source!r} matches {len(matches[0])} weights and {entry.target!r} "
                f"{len(matches[1])}; the k-th goes with the k-th, so make the counts equal"
            )
        for name, target_name in zip(*matches, strict=True):
            shapes = tuple(source.shapes[name]), tuple(target.shapes[target_name])
            form: Form = "convolution" if len(shapes[1]) > 2 else "matrix"
            pairs.append(
                WeightPair(
                    source=name, target=target_name, role="named", form=form, source_shape=shapes[0],
                    target_shape=shapes[1], parameters=math.prod(shapes[1]),
                )
            )  # fmt: skip
    if repeated := {entry.target for entry in pairs if sum(other.target == entry.target for other in pairs) > 1}:
        raise PairingRefused(
            f"transfer.pairs names {', '.join(sorted(repeated))} more than once; a weight has one source"
        )
    return pairs


def _weight_pair(source: LogicalWeight, target: LogicalWeight, axes: Mapping[str, AxisPair]) -> WeightPair:
    parameters = math.prod(target.shape[2:]) if target.form in ("convolution", "depthwise") else 1
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
        source_stored=source.stored,
        target_stored=target.stored,
        layer=target.layer,
        out=target.out,
        inp=target.inp,
        parameters=parameters,
    )


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
