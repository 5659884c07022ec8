"""How an architecture is declared: a family's weights in forward order, its sizes from a config, its heads by task.

Both directions follow from one declaration: the names and shapes of a model from its config (`shapes.py`), and the
role, layer and axes of each weight of a saved model from its names and shapes (`read_structure.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from mergenet_core.architectures.axes import Form, Kind, Shapes, axis_kind
from mergenet_core.spec.json_values import JsonObject, get_int, get_object
from mergenet_core.spec.task_info import TaskName

LAST = "{last}"
"""As an axis of a head: the output axis of the body's last weight."""


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The sizes of one model, from its config; what the config leaves out has the library's default."""

    axes: Mapping[str, int]
    """The size of each axis: of a kind (`ffn`), or of one layer (`units.0`) where layers differ."""
    layers: int
    width: int = 0
    """Entries of the residual stream; 0 without one."""
    heads: int = 0
    """Attention heads of queries; 0 without attention."""
    key_value_heads: int = 0
    """Attention heads of keys and values, each read by heads / key_value_heads of the queries."""
    attention_dropout: float = 0.0
    tied: bool = False
    """The head over the vocabulary is the word embedding."""
    options: frozenset[str] = frozenset()
    """Which of the family's optional weights the model has."""
    patch: tuple[int, int] = (1, 1)
    """Height and width of an image's patch."""

    def size(self, axis: str) -> int:
        """Entries of an axis. Raises: `KeyError` where the family's dimensions leave it out."""
        return self.axes[axis] if axis in self.axes else self.axes[axis_kind(axis)]

    def with_axis(self, axis: str, size: int) -> Dimensions:
        """The same with one more axis."""
        return replace(self, axes={**self.axes, axis: size})


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """One weight as a family declares it: a matrix between two named axes (a convolution: one a kernel position).

    `{layer}` in the name and the axes is the layer's number.
    """

    name: str
    """In the state dict, behind the prefix of the body it belongs to."""
    role: str | None
    """The same for the same weight in every layer and every family; None for an entry that takes no part in pairing."""
    form: Form
    out: str
    """Empty for a single number."""
    inp: str | None = None
    layer: int | None = None
    stage: int | None = None
    """The CNN stage of the weight's block."""
    kernel: tuple[int, int] | None = None
    """Of a convolution; None: an image's patch."""
    transposed: bool = False
    """Stored inputs × outputs."""
    fused: tuple[str, ...] = ()
    """The output axes of all weights that the entry fuses, in order; empty where it holds this weight alone."""
    position: int = 0
    """Which of the fused weights this is."""
    stored_axes: int = 2
    """Of an embedding: 1 for a single row without an axis for rows, 3 with one entry in front."""
    option: str = ""
    """The weight exists only with this option of `Dimensions` or `Head`; empty: always."""

    def in_layer(self, layer: int) -> WeightSpec:
        """The weight of one layer."""
        return replace(
            self,
            name=self.name.format(layer=layer),
            out=self.out.format(layer=layer),
            inp=self.inp and self.inp.format(layer=layer),
            fused=tuple(axis.format(layer=layer) for axis in self.fused),
            layer=layer,
        )

    def reading(self, last: str) -> WeightSpec:
        """The weight of a head behind a body whose last output axis is `last`."""
        return replace(self, inp=last) if self.inp == LAST else self

    def stored_shape(self, dimensions: Dimensions) -> tuple[int, ...]:
        """The shape of the state dict's entry that holds the weight."""
        if not self.out:
            return ()
        out = sum(dimensions.size(axis) for axis in self.fused or (self.out,))
        if self.form in ("vector", "gain"):
            return (out,)
        if self.form == "depthwise":
            return (out, 1, *(self.kernel or dimensions.patch))
        assert self.inp is not None, "only vectors and depthwise convolutions have one axis"
        inp = dimensions.size(self.inp)
        if self.form == "convolution":
            return (out, inp, *(self.kernel or dimensions.patch))
        if self.form == "embedding":
            return {1: (inp,), 2: (out, inp), 3: (1, out, inp)}[self.stored_axes]
        return (inp, out) if self.transposed else (out, inp)

    def stored_rows(self, dimensions: Dimensions, rows: int) -> tuple[int, int] | None:
        """The weight's first row and one past its last in an entry of so many; None where it is all of the entry."""
        if not self.fused:
            return None
        sizes = [dimensions.size(axis) for axis in self.fused]
        ends = [rows * sum(sizes[:count]) // sum(sizes) for count in range(len(sizes) + 1)]
        return ends[self.position], ends[self.position + 1]


class Body(Protocol):
    """The weights of a family's models without their heads, in the order that data passes through them."""

    def of_config(self, config: JsonObject, dimensions: Dimensions) -> Sequence[WeightSpec]:
        """The weights of the model that a config describes, optional ones included."""

    def of_shapes(self, shapes: Shapes) -> Sequence[WeightSpec]:
        """The weights that a model with these entries may have; names are those of the body alone."""


@dataclass(frozen=True, kw_only=True)
class LayeredBody:
    """A body of like layers, as transformers have."""

    before: tuple[WeightSpec, ...]
    layer: tuple[WeightSpec, ...]
    after: tuple[WeightSpec, ...] = ()

    def of_config(self, config: JsonObject, dimensions: Dimensions) -> Sequence[WeightSpec]:
        """See `Body`."""
        return self._of_layers(dimensions.layers)

    def of_shapes(self, shapes: Shapes) -> Sequence[WeightSpec]:
        """See `Body`."""
        names = {spec.name for spec in self.layer}
        numbered = (_LAYER.match(name) for name in shapes)
        found = (int(match[2]) for match in numbered if match and f"{match[1]}{{layer}}{match[3]}" in names)
        return self._of_layers(1 + max(found, default=-1))

    def _of_layers(self, layers: int) -> Sequence[WeightSpec]:
        inner = (spec.in_layer(layer) for layer in range(layers) for spec in self.layer)
        return [*self.before, *inner, *self.after]


_LAYER = re.compile(r"((?:[^.]*[^.\d][^.]*\.)*)(\d+)(\..*)")
"""A name around its first number."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a model has on top of its body for a task."""

    weights: tuple[WeightSpec, ...]
    options: frozenset[str] = frozenset()
    """Optional weights of the body that models with this head have."""
    prefix: str | None = None
    """Prefix of the body's names under this head; None: the family's."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The modules of a CNN that data passes one after the other: each reads what the one before returns."""

    modules: str
    """A pattern of their names, behind the prefix of the body."""
    linear: str = "$^"
    """A pattern of the names of those without an activation at their end."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that are built alike, with weights of the same names."""

    name: str
    kind: Kind
    model_types: tuple[str, ...]
    """Types that can be built from a config; empty for a family that only renames another's weights."""
    dimensions: Callable[[JsonObject], Dimensions]
    body: Body
    entrance: str
    """The weight that data enters by; what precedes its name in a state dict precedes every name of the body."""
    prefix: str = ""
    """Prefix of the body's names in a model with a head."""
    heads: Mapping[TaskName, Head] = field(default_factory=dict)
    """By the task that the head learns; the first is that of a model without a task."""
    other_heads: tuple[WeightSpec, ...] = ()
    """Heads that models are not built with here, and that are read where a saved model has them."""
    only_own_types: bool = False
    """Other model types use the same names and compute something else, so that their weights are not read."""
    prenorm: bool = False
    """Norms stand before attention and feed-forward, outside of the residual stream; else on it."""
    gated: bool = False
    """The feed-forward multiplies two projections."""
    rotary: bool = False
    """Positions rotate queries and keys, and no weight holds them."""
    blocks: Blocks | None = None
    """Of a CNN with a global average and a linear head behind its blocks; None for anything else."""

    def dimensions_of(self, config: JsonObject) -> Dimensions:
        """The sizes of the model that a config describes. Raises: `ValueError` naming an entry that is wrong."""
        try:
            return self.dimensions(config)
        except ZeroDivisionError:
            raise ValueError("the number of attention heads or a patch's side is 0; it must be positive") from None

    @property
    def ties_its_head(self) -> bool:
        """Whether the word embedding may be read as a head over the vocabulary."""
        return self.kind in ("encoder", "decoder")


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """One encoder of a model of two."""

    config_key: str
    """Where the model's config has the tower's."""
    prefix: str
    families: tuple[Family, ...]
    """What the tower may be, the default first."""
    projection: tuple[WeightSpec, ...]
    """From the tower's output into the joint space."""
    options: frozenset[str] = frozenset()
    """Optional weights of the body that the tower has."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """Model types of the tower's config, the default first."""
        return tuple(kind for family in self.families for kind in family.model_types)


@dataclass(frozen=True, kw_only=True)
class TwoTowerFamily:
    """Models of a text and an image encoder whose outputs meet in a joint space."""

    model_type: str
    text: TowerSpec
    image: TowerSpec
    joint: Callable[[JsonObject], int]
    """The width of the joint space."""
    extra: tuple[WeightSpec, ...]
    """Entries other than the towers and their projections."""
    tasks: tuple[TaskName, ...]

    @property
    def towers(self) -> tuple[TowerSpec, TowerSpec]:
        """Text, then images."""
        return self.text, self.image


def options(**present: bool) -> frozenset[str]:
    """The names of the options that are true."""
    return frozenset(name for name, value in present.items() if value)


def label_count(config: JsonObject) -> int:
    """How many labels a classifier's head has."""
    return get_int(config, "num_labels", default=0) or len(get_object(config, "id2label")) or 2


def only(weights: Iterable[WeightSpec], present: frozenset[str]) -> list[WeightSpec]:
    """The weights that a model with these options has."""
    return [spec for spec in weights if not spec.option or spec.option in present]
