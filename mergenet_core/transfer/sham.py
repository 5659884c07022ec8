"""The sham source: the same numbers in every weight, in a random order that carries no knowledge."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def shuffled(W: Tensor, name: str, seed: int) -> Tensor:
    """A tensor with its entries in a random order that depends on the name and the seed alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    order = torch.randperm(W.numel(), generator=generator)
    return W.reshape(-1)[order.to(W.device)].reshape(W.shape)


class ShuffledWeights(Mapping[str, Tensor]):
    """Weights with their entries shuffled: each keeps its distribution and loses its knowledge.

    A weight is shuffled when it is looked up, in the same way each time.
    """

    def __init__(self, weights: Mapping[str, Tensor], seed: int) -> None:
        self._weights, self._seed = weights, seed

    def __getitem__(self, name: str) -> Tensor:
        return shuffled(self._weights[name].detach(), name, self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
