"""What pairing finds: axes that stand for one another, weights that learn from one another, reasons for the rest."""

from __future__ import annotations

from typing import Literal

from mergenet_core.jobs.anatomy import Form, Kind
from mergenet_core.jobs.records import Record

PairedMethod = Literal["project", "anchored", "lpka"]


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
    kind: Kind | Literal["named"]
    axes: dict[str, AxisPair]
    """By the target's axis, in the order in which they are met."""
    pairs: tuple[WeightPair, ...]
    """In the order that data passes through the target."""
    basis: str | None = None
    """The source's embedding that the residual stream's map is taken from; None where no stream runs through."""
    unpaired: dict[str, str]
    """Every other weight of the target, with the reason."""
    rank: int
    """The largest rank of a pair's re-encoding."""
    transferable_parameters: int

    @property
    def anchored_axes(self) -> tuple[str, ...]:
        """The axes that mean the same in both models."""
        return tuple(name for name, axis in self.axes.items() if axis.anchored)
