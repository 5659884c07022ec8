"""What pairing finds: the axes and weights of two models that correspond, and reasons for the rest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mergenet_core.architectures.axes import Form, Kind, StoredSlice
from mergenet_core.records.record import Record

PairedMethod = Literal["project", "anchored", "lpka", "lpka-raw", "fit"]
UNANCHORED = ("lpka", "lpka-raw")
"""Methods that need no axis to mean the same in both models, and move matrices only."""
How = Literal["same", "names", "carried", "free"]
"""An axis means the same entry by entry, or by names; or its map is carried from such axes, or from none."""


class AxisPair(Record):
    """An axis of the target and the source's axis that corresponds to it."""

    source: str
    source_size: int
    target_size: int
    anchored: bool
    """It means the same in both models; else a method makes a map at its first weight, and carries it on."""
    order: tuple[int, ...] | None = None
    """Anchored by names: the source's entry for each covered entry of the target. None: the same indices."""
    cover: tuple[int, ...] | None = None
    """The target's entries that `order` is for, ascending; the others keep their own values. None: all of them."""
    covered: int | None = None
    """How many entries `cover` has, also where the lists themselves are left out."""
    free: bool = False
    """Not anchored, and its map does not follow from an anchored axis."""
    because: str = ""
    """What makes it mean the same, in words."""
    basis: str | None = None
    """A stream: the source's weight that its map is taken from."""
    basis_form: Form = "embedding"
    """An embedding is entries of data × stream; in any other form the stream is the first axis."""
    heads: tuple[int, int] | None = None
    """Attention heads of source and target that the axis falls into."""
    follows: str | None = None
    """The axis that decides which heads go together. Where this axis has fewer heads, each is for a group of those."""
    rotary: bool = False
    """The target turns entries k and k + half of each head together by the position, the more slowly the larger k."""

    @property
    def shared_size(self) -> int:
        """Entries of the target's axis that the source can fill."""
        return self.covered if self.covered is not None else min(self.source_size, self.target_size)

    @property
    def how(self) -> How:
        """How source and target agree on the axis."""
        if self.anchored:
            return "same" if self.covered is None else "names"
        return "free" if self.free else "carried"


class WeightPair(Record):
    """A weight of the target and the source's weight that it learns from."""

    source: str
    """A slice of a fused weight is named with its rows, `c_attn.weight[0:64]`; so is the target's."""
    target: str
    role: str
    form: Form
    source_shape: tuple[int, ...]
    """Outputs first, however it is stored; so is the target's."""
    target_shape: tuple[int, ...]
    source_stored: StoredSlice | None = None
    """The slice of the source's state dict that holds it, if it is not an entry of its own, outputs first."""
    target_stored: StoredSlice | None = None
    """The same for the target's."""
    layer: int | None = None
    """The target's layer."""
    out: str | None = None
    """The target's axis in `Pairing.axes`; None where no structure is known."""
    inp: str | None = None
    rank: int | None = None
    """Rank r of the re-encoding; None for vectors."""
    parameters: int
    """Entries of the target's weight that the transfer writes."""


class Pairing(Record):
    """What takes part in a transfer, and why the rest does not."""

    method: PairedMethod
    kind: Kind | Literal["named"]
    """Of the target, or of its first tower that takes part."""
    axes: dict[str, AxisPair]
    """By the target's axis, in the order in which data meets them; of several towers, with `@tower` behind."""
    pairs: tuple[WeightPair, ...]
    """In the order that data passes through the target."""
    basis: str | None = None
    """The source's embedding that the first stream's map is taken from; None where no stream runs through."""
    unpaired: dict[str, str]
    """Every other weight of the target, with the reason."""
    unshared: dict[str, str] = Field(default_factory=dict)
    """Axes that both models have and that do not mean the same in them, with the reason."""
    undecided: dict[str, str] = Field(default_factory=dict)
    """Axes of which training decides, once it has read the data, whether they are shared; with what it depends on."""
    rank: int
    """The largest rank of a pair's re-encoding."""
    transferable_parameters: int

    @property
    def anchored_axes(self) -> tuple[str, ...]:
        """The axes that mean the same in both models."""
        return tuple(name for name, axis in self.axes.items() if axis.anchored)

    def brief(self) -> Pairing:
        """The same without the lists of a vocabulary's entries, for records and display; their count stays."""
        axes = {
            name: axis
            if axis.order is None or len(axis.order) <= _ORDER_SHOWN
            else axis.model_copy(update={"order": None, "cover": None})
            for name, axis in self.axes.items()
        }
        return self.model_copy(update={"axes": axes})


_ORDER_SHOWN = 1_000
