"""What stands behind a target's last layer: a norm, and a head over labels that the source knows."""

from __future__ import annotations

import torch
from torch import Tensor

from mergenet_core.fitting.context import FitContext
from mergenet_core.fitting.gram import Gram
from mergenet_core.fitting.transformer.role_weights import Point
from mergenet_core.fitting.transformer.state import TransformerFit

_RIDGE = 1e-2


def solve_last_norm(fit: TransformerFit) -> float:
    """Set the norm behind the last layer so that it writes what the source's last norm does; what is left of that."""
    if fit.source.has("norm.weight"):
        fit.want_stream(2 * fit.source.structure.layers + 1)
    return fit.fit_norm("norm")


def solve_head(fit: TransformerFit, context: FitContext) -> float:
    """Write the head, and the pooler before it where both models have one; what is left of the logits' variance.

    The pooler's units are those of the source that add most to its logits, before their activation.
    """
    assert context.columns is not None
    columns = list(context.columns)
    if fit.source.has("pooler.weight") and fit.target.has("pooler.weight") and fit.source.has("head.weight"):
        variance_u = _moments(fit, context)[1].diagonal()
        energy_u = variance_u * fit.source.view("head.weight")[columns].to(variance_u).square().sum(0)
        count = min(len(energy_u), len(fit.target.view("pooler.weight")))
        kept_u = torch.sort(energy_u, descending=True, stable=True).indices[:count].sort().values
        _regress(fit, context, "pooler", kept_u)
    return _regress(fit, context, "head", torch.tensor(columns))


def _moments(fit: TransformerFit, context: FitContext) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what the source's head reads."""
    gram = Gram(fit.source.view("head.weight").shape[1], device=fit.source.device)
    for chunk in range(len(context.chunks)):
        gram.add(_last(fit, chunk, _run_source(fit, chunk, (fit.source.computing("head.weight"), "input"))))
    return gram.sum_over(fit.sum_).moments()


def _regress(fit: TransformerFit, context: FitContext, role: str, kept_u: Tensor) -> float:
    """Write a linear layer by what the source's writes before any activation; what is left of its variance."""
    module = fit.target.computing(f"{role}.weight")
    gram = Gram(fit.target.view(f"{role}.weight").shape[1], len(kept_u), fit.target.device)
    for chunk in range(len(context.chunks)):
        read = fit.target_walk.enter(chunk, {"inputs": (module, "input")}, stop="inputs")["inputs"]
        X_bi = _last(fit, chunk, read)
        wanted = _last(fit, chunk, _run_source(fit, chunk, (fit.source.computing(f"{role}.weight"), "output")))
        gram.add(X_bi, wanted[:, kept_u.to(wanted.device)].to(X_bi))
    found = gram.sum_over(fit.sum_).solve(_RIDGE, intercept=fit.target.has(f"{role}.bias"))
    fit.target.write_affine(role, found, rows=torch.arange(len(kept_u)))
    return found.error


def _run_source(fit: TransformerFit, chunk: int, point: Point) -> Tensor:
    return fit.source_walk.enter(chunk, {"point": point}, stop="point")["point"]


def _last(fit: TransformerFit, chunk: int, h: Tensor) -> Tensor:
    """One row for each example: a decoder's head reads every token, and the last one counts."""
    return fit.tokens.last(chunk, h) if h.ndim == 3 else h
