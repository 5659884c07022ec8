"""A source's weights as the parts that pairing names: a fused weight cut, a transposed one turned, outputs first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from mergenet_core.architectures.axes import StoredSlice
from mergenet_core.pairing.result import Pairing
from mergenet_core.transfer.reencode import Factored


class Parts(Mapping[str, Tensor]):
    """Weights by the name of the part, each a view of the weight that holds it; other names stay what they are."""

    def __init__(self, weights: Mapping[str, Tensor], pairing: Pairing) -> None:
        self._weights = weights
        self._stored = {pair.source: pair.source_stored for pair in pairing.pairs if pair.source_stored is not None}

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored.get(name)
        return self._weights[name] if stored is None else part_of(self._weights[stored.name], stored)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The factors that a weight is kept by; None where it is kept whole, or is a part of another."""
        kept = isinstance(self._weights, Factored) and name not in self._stored
        return self._weights.factors(name) if kept else None  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._weights), **dict.fromkeys(self._stored)})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def part_of(W: Tensor, stored: StoredSlice) -> Tensor:
    """A part of a weight, outputs first, sharing its storage."""
    W = W.T if stored.transposed else W
    return W if stored.rows is None else W[slice(*stored.rows)]
