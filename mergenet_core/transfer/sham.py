"""The sham source: the same numbers in every weight, in an order that means nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def shuffled(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every weight with its entries permuted: each keeps its distribution, and the knowledge is gone."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name in sorted(weights):
        W = weights[name]
        places = torch.randperm(W.numel(), generator=generator)
        result[name] = W.detach().reshape(-1)[places.to(W.device)].reshape(W.shape)
    return result
