"""The closed-form fit of a transformer: its embeddings, then layer by layer its attention and its feed-forward.

What the source's stream is at a boundary, seen through one linear map, is what the target's stream should be there.
Each part is solved on the target's own activations so far, so that a later part mends what an earlier one could not
fit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mergenet_core.fitting.context import FitContext, Solved
from mergenet_core.fitting.transformer.attention import solve_attention
from mergenet_core.fitting.transformer.embeddings import enter_embeddings, solve_embeddings
from mergenet_core.fitting.transformer.feed_forward import solve_feed_forward
from mergenet_core.fitting.transformer.output import solve_head, solve_last_norm
from mergenet_core.fitting.transformer.source_visit import take, visit
from mergenet_core.fitting.transformer.state import TransformerFit


def fit_transformer(context: FitContext, start: int = 0) -> Iterator[Solved]:
    """Write the target's weights part after part; the first `start` parts are in the weights already.

    The parts are the embeddings, the attention and the feed-forward of each layer, the norm behind the last layer, and
    the head where the source knows the target's labels; a pooler, and a head for other labels, stay as they are.
    """
    modes = [(model.module, model.module.training) for model in (context.source, context.target)]
    for module, _ in modes:
        module.eval()
    try:
        parts = enumerate(_parts(context, start))
        while True:
            with torch.no_grad():  # not held while the caller has the part
                part = next(parts, None)
            if part is None:
                return
            if part[0] >= start:
                yield part[1]
    finally:
        for module, training in modes:
            module.train(training)


def _parts(context: FitContext, start: int) -> Iterator[Solved]:
    """All parts in the order that data passes through them; those before `start` are not solved again."""
    fit = TransformerFit(context)
    layers = fit.target.structure.layers
    error = solve_embeddings(fit) if start < 1 else enter_embeddings(fit)
    yield Solved("embeddings", error)
    for layer in range(layers):
        name, seen = fit.target.layer_name(layer), visit(fit, layer, taken := take(fit, layer))
        first = 1 + 2 * layer
        error = solve_attention(fit, layer, taken, seen) if start <= first else 0.0
        yield Solved(f"{name}, attention", error)
        error = solve_feed_forward(fit, layer, seen) if start <= first + 1 else 0.0
        fit.target_walk.advance(layer)
        yield Solved(f"{name}, feed-forward", error, fit.boundary(layer))
    last = 1 + 2 * layers
    if fit.target.has("norm.weight"):
        error = solve_last_norm(fit) if start <= last else 0.0
        yield Solved(fit.target.module_name("norm.weight"), error)
        last += 1
    if context.columns is not None and fit.target.has("head.weight"):
        error = solve_head(fit, context) if start <= last else 0.0
        yield Solved(fit.target.module_name("head.weight"), error)
