"""One pass of the source over the pool: the moments of its stream, and what each head and unit adds to it.

Legend: n tokens, D the source's stream, d the target's, h heads, w a head's width, u feed-forward units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.fitting.gram import Gram
from mergenet_core.fitting.transformer.layer_walk import LayerWalk
from mergenet_core.fitting.transformer.role_weights import Point, RoleWeights
from mergenet_core.fitting.transformer.stream_map import StreamMap


@dataclass(frozen=True)
class Survey:
    """What is known of the source before the target is solved."""

    streams: Mapping[int, Gram]
    """Moments of the stream at each boundary."""
    heads_hww: Mapping[int, Tensor]
    """For each layer the covariance of what each head reads, before the output projection."""
    units_u: Mapping[int, Tensor]
    """For each layer the variance of each unit behind its activation."""

    def head_energy(self, source: RoleWeights, stream: StreamMap, layer: int) -> Tensor:
        """The variance that each head adds to the target's view of the stream. Shapes: (h)."""
        moments_hww = self.heads_hww[layer]
        W_dD = source.view("attention.out.weight", layer).to(stream.P_Dd)
        W_dhw = (stream.P_Dd.T @ W_dD).view(-1, *moments_hww.shape[:2])
        energy_h: Tensor = torch.einsum("dhv,hvw,dhw->h", W_dhw, moments_hww, W_dhw)
        return energy_h

    def unit_energy(self, source: RoleWeights, stream: StreamMap, layer: int) -> Tensor:
        """The variance that each feed-forward unit adds to the target's view of the stream. Shapes: (u)."""
        W_du = stream.P_Dd.T @ source.view("ffn.down.weight", layer).to(stream.P_Dd)
        return self.units_u[layer] * W_du.square().sum(0)


Rows = Callable[[int, Tensor], Tensor]
"""The tokens of a chunk's tensor that count. Shapes: (b, t, …) → (n, …)."""


def survey(
    source: RoleWeights, walk: LayerWalk, boundaries: Iterable[int], rows: Rows, sum_: Callable[[Tensor], Tensor]
) -> Survey:
    """Run the source over all chunks.

    Boundary 2k is the stream before layer k and 2k + 1 the one between its attention and its feed-forward; after the
    last layer come its output and that of the norm behind it. In a
    source whose norms stand outside of the stream a few tokens can be many times as long as the others, so each counts
    by its direction: 1 / mean square of its stream.
    """
    layers = source.structure.layers
    device, width = source.device, source.structure.dimensions.width
    streams = {boundary: Gram(width, device=device) for boundary in sorted(set(boundaries))}
    sums = [_LayerSums(source, layer) for layer in range(layers)]
    for chunk, recorded in walk.run_whole(_points(source)):
        for boundary, gram in streams.items():
            h_nD = rows(chunk, recorded[f"stream {boundary}"])
            gram.add(h_nD, weights_n=_weights(source, h_nD))
        for layer, layer_sums in enumerate(sums):
            weights_n = _weights(source, rows(chunk, recorded[f"stream {2 * layer + 2}"]))
            contexts_ni, units_nu = (rows(chunk, recorded[f"{name} {layer}"]) for name in ("contexts", "units"))
            layer_sums.add(contexts_ni, units_nu, weights_n)
    moments = [layer_sums.moments(sum_) for layer_sums in sums]
    return Survey(
        {boundary: gram.sum_over(sum_) for boundary, gram in streams.items()},
        dict(enumerate(heads_hww for heads_hww, _ in moments)),
        dict(enumerate(units_u for _, units_u in moments)),
    )


def _points(source: RoleWeights) -> dict[str, Point]:
    layers = source.structure.layers
    points: dict[str, Point] = {}
    for layer in range(layers):
        points[f"stream {2 * layer}"] = (source.layer_module(layer), "input")
        points[f"stream {2 * layer + 1}"] = source.middle(layer)
        points[f"contexts {layer}"] = (source.computing("attention.out.weight", layer), "input")
        points[f"units {layer}"] = (source.computing("ffn.down.weight", layer), "input")
    points[f"stream {2 * layers}"] = (source.layer_module(layers - 1), "output")
    if source.has("norm.weight"):
        points[f"stream {2 * layers + 1}"] = (source.computing("norm.weight"), "output")
    return points


def _weights(source: RoleWeights, h_nD: Tensor) -> Tensor:
    if not source.structure.family.prenorm:
        return h_nD.new_ones(len(h_nD))
    return 1 / h_nD.square().mean(1).clamp_min(1e-12)


class _LayerSums:
    """Sums over all tokens of one layer."""

    def __init__(self, source: RoleWeights, layer: int) -> None:
        heads = source.structure.dimensions.heads
        width = source.view("attention.out.weight", layer).shape[1] // heads
        units = source.view("ffn.down.weight", layer).shape[1]
        shapes = ((), (heads, width), (heads, width, width), (units,), (units,))
        self._totals = [torch.zeros(shape, dtype=torch.float64, device=source.device) for shape in shapes]

    def add(self, contexts_ni: Tensor, units_nu: Tensor, weights_n: Tensor) -> None:
        """Count the tokens of a chunk in."""
        w_n, units_nu = weights_n.double(), units_nu.double()
        contexts_nhw = contexts_ni.reshape(-1, *self._totals[1].shape).double()
        weighted_nhw = contexts_nhw * w_n[:, None, None]
        products_hww = torch.einsum("nhv,nhw->hvw", weighted_nhw, contexts_nhw)
        parts = (w_n.sum(), weighted_nhw.sum(0), products_hww, w_n @ units_nu, w_n @ units_nu.square())
        for total, part in zip(self._totals, parts, strict=True):
            total += part

    def moments(self, sum_: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Covariances of heads and variances of units over all processes."""
        count, first_hw, second_hww, first_u, second_u = (sum_(total) for total in self._totals)
        mean_hw = first_hw / count
        variance_u = (second_u / count - (first_u / count).square()).clamp_min(0)
        return second_hww / count - mean_hw[:, :, None] * mean_hw[:, None, :], variance_u
