"""The feed-forward of a target's layer: units after chosen source units, then the projection onto the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from mergenet_core.fitting.transformer.layer_walk import Recorded
from mergenet_core.fitting.transformer.source_visit import Seen
from mergenet_core.fitting.transformer.state import TransformerFit

_RIDGE = 1e-3


def solve_feed_forward(fit: TransformerFit, layer: int, seen: Seen) -> float:
    """Write the feed-forward of one layer and the norm behind it; what is left of the wanted.

    Of a gated feed-forward, the projection under the activation does what the only projection of a plain one does; the
    other one then multiplies by 1.
    """
    source, target = fit.source.structure.family, fit.target.structure.family
    fit.wanted = seen.middle_nd
    widths = seen.units_nu[0].shape[1]
    units = widths // 2 if source.gated else widths
    activated, multiplied = slice(0, units), slice(units, 2 * units) if source.gated else None
    for role in ("ffn.gate", "ffn.up") if target.gated else ("ffn.up",):
        part = multiplied if role == "ffn.up" and target.gated else activated

        def wanted(chunk: int, _: Recorded, part: slice | None = part) -> Tensor:
            units_nu = seen.units_nu[chunk]
            return units_nu[:, part] if part is not None else torch.ones_like(units_nu)

        found = fit.regress(role, layer, wanted, outputs=units, ridge=_RIDGE, points={})
        fit.target.write_affine(role, found, layer, torch.arange(units))
    fit.want_stream(fit.boundaries[layer + 1])
    error = fit.solve_rest("ffn.down", layer, fit.target.middle(layer), seen.outputs_nd)
    return error if target.prenorm else fit.fit_norm("ffn.norm", layer)
