"""The directions in which a target keeps the source's channels: one choice for each run of skip connections.

Legend: s channels of the source, d directions kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mergenet_core.fitting.cnn.layers import gram_of
from mergenet_core.fitting.cnn.parts import Part, observe, places
from mergenet_core.fitting.context import FitContext

LEAST_VARIANCE = 1e-6
"""Of a channel, on average: activations that hardly differ are not magnified until their rounding shows."""
_Rows = tuple[Tensor, None]


@dataclass(frozen=True)
class Basis:
    """A map from the channels of one of the source's axes."""

    axis: str
    map_sd: Tensor

    def turned_to(self, S_sd: Tensor) -> Basis:
        """Turned so that it is nearest to values with these covariances (the orthogonal Procrustes problem)."""
        U, _, Vh = torch.linalg.svd(self.map_sd.T @ S_sd[:, : self.map_sd.shape[1]])
        return replace(self, map_sd=self.map_sd @ (U @ Vh))


def covariances(context: FitContext, parts: Sequence[Part], inputs: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """By axis: the mean covariance of the channels over all blocks that end on it. Shapes: (s, s)."""
    found: dict[str, Tensor] = {}
    for part in parts:
        outputs: list[Tensor] = []

        def rows(part: Part = part, inputs: Sequence[Tensor] = inputs, kept: list[Tensor] = outputs) -> Iterator[_Rows]:
            for x in inputs:
                kept.append(observe(part, x).out.cpu())
                yield places(kept[-1]), None

        _, S_ss = gram_of(context, rows()).moments()
        found[part.last.axis] = found.get(part.last.axis, 0) + S_ss
        inputs = outputs
    return {axis: S_ss / sum(part.last.axis == axis for part in parts) for axis, S_ss in found.items()}


def principal(axis: str, S_ss: Tensor, size: int) -> Basis:
    """The directions of the largest variance, with one scale, so that they have a variance of 1 on average."""
    P_sd = torch.linalg.eigh(S_ss).eigenvectors.flip(1)[:, :size]
    largest_d = P_sd.gather(0, P_sd.abs().argmax(dim=0, keepdim=True))
    return Basis(axis, _scaled(P_sd * largest_d.sign(), S_ss))


def channels(axis: str, S_ss: Tensor, size: int, *, scaled: bool) -> Basis:
    """The channels of the largest variance."""
    units = S_ss.diagonal().argsort(descending=True, stable=True)[:size].sort().values
    P_sd = torch.eye(len(S_ss), dtype=S_ss.dtype, device=S_ss.device)[:, units]
    return Basis(axis, _scaled(P_sd, S_ss) if scaled else P_sd)


def _scaled(P_sd: Tensor, S_ss: Tensor) -> Tensor:
    variance_d = ((S_ss @ P_sd) * P_sd).sum(0)
    return P_sd * variance_d.mean().clamp_min(LEAST_VARIANCE).rsqrt()
