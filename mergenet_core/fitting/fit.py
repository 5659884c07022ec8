"""The solver of each kind of target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mergenet_core.architectures.axes import Kind
from mergenet_core.fitting.cnn.solve import fit_cnn
from mergenet_core.fitting.context import FitContext, Solved
from mergenet_core.fitting.mlp import fit_mlp
from mergenet_core.fitting.transformer.solve import fit_transformer

Solver = Callable[[FitContext, int], Iterator[Solved]]
SOLVERS: Mapping[Kind, Solver] = {
    "cnn": fit_cnn,
    "mlp": fit_mlp,
    "encoder": fit_transformer,
    "decoder": fit_transformer,
    "vit": fit_transformer,
}


def fit(context: FitContext, start: int = 0) -> Iterator[Solved]:
    """Write the target's weights part after part; the first `start` parts are in the weights already."""
    return SOLVERS[context.target.structure.kind](context, start)
