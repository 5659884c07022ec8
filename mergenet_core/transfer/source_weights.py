"""A source's weights under the names that pairing uses.

A fused weight is cut into its slices and a transposed one is turned, so that outputs always come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from mergenet_core.architectures.axes import StoredSlice
from mergenet_core.pairing.result import Pairing
from mergenet_core.transfer.reencode import FactoredWeights


class SourceWeights(Mapping[str, Tensor]):
    """Weights by pairing's names, each a view of the stored weight; names that pairing does not cut are unchanged."""

    def __init__(self, weights: Mapping[str, Tensor], pairing: Pairing) -> None:
        self._weights = weights
        self._stored = {pair.source: pair.source_stored for pair in pairing.pairs if pair.source_stored is not None}

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored.get(name)
        return self._weights[name] if stored is None else stored_slice(self._weights[stored.name], stored)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The stored factors B and A of a weight; None where it is stored whole, or is a slice of another weight."""
        if name in self._stored or not isinstance(self._weights, FactoredWeights):
            return None
        return self._weights.factors(name)

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._weights), **dict.fromkeys(self._stored)})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def stored_slice(W: Tensor, stored: StoredSlice) -> Tensor:
    """A slice of a stored weight, outputs first, sharing its memory."""
    W = W.T if stored.transposed else W
    return W if stored.rows is None else W[slice(*stored.rows)]
