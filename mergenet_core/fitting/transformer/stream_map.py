"""The map from the source's residual stream to the target's, from the source's activations on the pool.

Legend: n tokens, D the source's stream, d the target's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.fitting.gram import Gram


@dataclass(frozen=True)
class StreamMap:
    """One linear map for all boundaries, and for each of them a centre and one scale.

    Equation: z = (h − μ) P / σ.
    """

    P_Dd: Tensor
    means: Mapping[int, Tensor]
    """μ of each boundary."""
    scales: Mapping[int, float]
    """σ of each boundary."""

    def wanted(self, boundary: int, h_nD: Tensor) -> Tensor:
        """What the target's stream should be at a boundary. Shapes: (…, D) → (…, d)."""
        P_Dd, mean_D = self.P_Dd.to(h_nD), self.means[boundary].to(h_nD)
        return (h_nD - mean_D) @ P_Dd / self.scales[boundary]


def same_stream(boundaries: Iterable[int], width: int, target: int) -> StreamMap:
    """The map into a stream that is at least as wide: every entry keeps its place and value."""
    P_Dd, nothing_D = torch.eye(width, target, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    return StreamMap(P_Dd, dict.fromkeys(boundaries, nothing_D), dict.fromkeys(boundaries, 1.0))


def narrower_stream(
    grams: Mapping[int, Gram], target: int, *, centred: bool, of_one_scale: Collection[int] = ()
) -> StreamMap:
    """The map into a narrower stream: the directions of largest variance over all boundaries, in a balanced basis.

    Without `centred`, for a target that has no biases to move a mean, variance is about zero. Boundaries `of_one_scale`
    are those of a stream without norms on it, where what skips a layer keeps its size.

    Equation: P = V F, with V the top eigenvectors of the sum of the boundaries' covariances, each divided by its trace,
    and F the rows of `balanced_basis` (centred: without the constant one). σ² is what P keeps of the variance, divided
    by the target's width.
    """
    moments = {at: gram.moments(centred=centred) for at, gram in grams.items()}
    total_DD = torch.stack([second_DD / second_DD.trace() for _, second_DD in moments.values()]).sum(0)
    kept = target - 1 if centred else target
    V_Dk = torch.linalg.eigh(total_DD).eigenvectors.flip(1)[:, :kept]
    largest_k = V_Dk.abs().argmax(0)
    V_Dk = V_Dk * V_Dk[largest_k, torch.arange(kept, device=V_Dk.device)].sign()
    P_Dd = V_Dk @ balanced_basis(target)[-kept:].to(V_Dk)
    variances = {at: float(((second_DD @ P_Dd) * P_Dd).sum()) / target for at, (_, second_DD) in moments.items()}
    if of_one_scale:
        shared = sum(variances[at] for at in of_one_scale) / len(of_one_scale)
        variances |= dict.fromkeys(of_one_scale, shared)
    means = {at: mean_D if centred else torch.zeros_like(mean_D) for at, (mean_D, _) in moments.items()}
    return StreamMap(P_Dd, means, {at: math.sqrt(variance) for at, variance in variances.items()})


def balanced_basis(size: int) -> Tensor:
    """An orthonormal basis whose first row is constant and whose later rows pair up to the same weight in each column.

    Mapped by the later rows, directions of unequal variance become entries of nearly equal variance whose mean is zero,
    as a layer norm leaves them: its subtraction of the mean takes nothing away, and its gain has nothing to restore.
    Equation: the rows are 1, √2 cos(2πjk/d), √2 sin(2πjk/d) for j = 1, 2, …, divided by √d. Shapes: (d, d).
    """
    columns = torch.arange(size, dtype=torch.float64)
    rows = [torch.ones(size, dtype=torch.float64)]
    for frequency in range(1, size // 2 + 1):
        angle = 2 * math.pi * frequency * columns / size
        nyquist = 2 * frequency == size
        rows += [angle.cos()] if nyquist else [math.sqrt(2) * angle.cos(), math.sqrt(2) * angle.sin()]
    return torch.stack(rows) / math.sqrt(size)
