"""The sham source: the same numbers in every weight, in an order that means nothing."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def shuffled(W: Tensor, name: str, seed: int) -> Tensor:
    """A tensor with its entries in another order, the same for a name and seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    places = torch.randperm(W.numel(), generator=generator)
    return W.reshape(-1)[places.to(W.device)].reshape(W.shape)


class Shuffled(Mapping[str, Tensor]):
    """Every weight with its entries permuted: each keeps its distribution, and the knowledge is gone.

    Made one weight at a time, and the same for a name and seed whichever weights are asked for.
    """

    def __init__(self, weights: Mapping[str, Tensor], seed: int) -> None:
        self._weights, self._seed = weights, seed

    def __getitem__(self, name: str) -> Tensor:
        return shuffled(self._weights[name].detach(), name, self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
