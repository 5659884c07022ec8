"""The solver for plain networks of linear layers (`mergenet-mlp`).

Each hidden layer is solved towards the source's layer at the same relative depth: its units with the largest activation
energy, as they are before the ReLU. The head is solved towards the source's logits where the labels are the same.

Legend: n inputs of a chunk, s units of the source's layer, t units of the target's, i inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mergenet_core.fitting.context import Boundary, FitContext, Solved
from mergenet_core.fitting.gram import Affine, Gram

_RIDGE = 1e-3


def fit_mlp(context: FitContext, start: int = 0) -> Iterator[Solved]:
    """Solve the hidden layers in their order, then the head; the first `start` of these are solved already."""
    layers, others = (_linear_layers(model.module) for model in (context.target, context.source))
    inputs, hidden = _first_inputs(context), len(layers) - 1
    activations = _source_activations(context, others)
    for number, (name, layer) in enumerate(layers):
        head = number == hidden
        if head and context.columns is None:
            return
        depth = len(others) - 1 if head else _same_depth(number, hidden, len(others) - 1)
        chosen_t = (
            torch.tensor(context.columns)
            if head
            else _chosen_units(context, activations[depth], others[depth + 1][1], layer.out_features)
        )
        wanted = [h_ns[:, chosen_t.to(h_ns.device)] for h_ns in activations[depth]]
        if number >= start:
            solved = _solve(context, inputs, wanted, layer)
            boundary = None if head else _selection(name, others[depth][0], chosen_t, others[depth][1].out_features)
            yield Solved(name, solved.error, boundary)
        inputs = [torch.relu(layer(X_ni)) for X_ni in inputs]


@torch.no_grad()
def _solve(context: FitContext, inputs: Sequence[Tensor], wanted: Sequence[Tensor], layer: nn.Linear) -> Affine:
    gram = Gram(layer.in_features, layer.out_features, layer.weight.device)
    for X_ni, Y_nt in zip(inputs, wanted, strict=True):
        gram.add(X_ni, Y_nt)
    found = gram.sum_over(context.sum_).solve(_RIDGE)
    layer.weight.copy_(found.W_io.T)
    layer.bias.copy_(found.b_o)
    return found


def _chosen_units(context: FitContext, units: Sequence[Tensor], reader: nn.Linear, count: int) -> Tensor:
    """The units whose activations carry most into the next layer; a wider target repeats them.

    Equation: energy = Var(ReLU(h)) · ‖outgoing weights‖².
    """
    size = reader.in_features
    sums = torch.zeros(3, size, dtype=torch.float64, device=reader.weight.device)
    for h_ns in units:
        X_ns = torch.relu(h_ns).double()
        sums += torch.stack([torch.ones_like(X_ns).sum(0), X_ns.sum(0), X_ns.square().sum(0)])
    count_s, sum_s, square_s = context.sum_(sums)
    energy_s = (square_s / count_s - (sum_s / count_s).square()) * reader.weight.double().square().sum(0)
    order = torch.argsort(energy_s, descending=True, stable=True)
    return order.repeat(-(-count // size))[:count].cpu()


def _selection(target: str, source: str, chosen_t: Tensor, size: int) -> Boundary:
    map_st = torch.nn.functional.one_hot(chosen_t, size).T.float()
    return Boundary(target, source, torch.zeros(size), map_st, torch.zeros(len(chosen_t)))


def _same_depth(layer: int, of: int, others: int) -> int:
    """The layer among `others` at the same relative depth; the last one goes with the last."""
    return round((layer + 1) * others / of) - 1 if of <= others else layer * others // of


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The network's layers in forward order, the head last."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def _source_activations(context: FitContext, layers: Sequence[tuple[str, nn.Linear]]) -> list[list[Tensor]]:
    """Of each layer of the source, its outputs before the ReLU for every chunk."""
    found: list[list[Tensor]] = [[] for _ in layers]
    for chunk in context.chunks:
        X_ni = chunk.source["pixel_values"].flatten(1)
        for kept, (_, layer) in zip(found, layers, strict=True):
            kept.append(layer(X_ni))
            X_ni = torch.relu(kept[-1])
    return found


def _first_inputs(context: FitContext) -> list[Tensor]:
    return [chunk.target["pixel_values"].flatten(1) for chunk in context.chunks]
