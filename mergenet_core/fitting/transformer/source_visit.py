"""The source's layers at the depth of one target layer: what is taken of them, and a pass that records it.

Legend: n tokens, i inputs of the target's attention, o queries, keys and values of the chosen heads side by side,
u chosen units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.fitting.gram import Gram
from mergenet_core.fitting.transformer.heads import SourceHead, choose_heads
from mergenet_core.fitting.transformer.layer_walk import Recorded
from mergenet_core.fitting.transformer.role_weights import Point, RoleWeights
from mergenet_core.fitting.transformer.state import TransformerFit

ROLES = ("attention.query", "attention.key", "attention.value")


@dataclass(frozen=True)
class Taken:
    """What a target layer takes of the source's layers at its depth."""

    layers: list[int]
    heads: list[SourceHead | None]
    """For each of the target's heads."""
    units: dict[int, Tensor]
    """Units of the feed-forward by layer; together at most as many as the target's layer has."""


@dataclass(frozen=True)
class Seen:
    """What a pass has recorded."""

    heads: Gram
    """The sums for a regression of the heads' queries, keys and values on what the target's attention reads."""
    sums_nd: list[Tensor]
    """For each chunk what the target's stream should be behind attention, before a norm on it; empty without one."""
    middle_nd: list[Tensor]
    """For each chunk what the target's stream should be between attention and feed-forward."""
    outputs_nd: list[Tensor]
    """The same behind the feed-forward."""
    units_nu: list[Tensor]
    """For each chunk the units before their activation; of gated ones the gates, then what they multiply."""


def take(fit: TransformerFit, layer: int) -> Taken:
    """Choose heads and units by the variance that they add to the target's view of the stream."""
    layers = fit.layers(layer)
    source, target = fit.source.structure.dimensions, fit.target.structure.dimensions
    heads = choose_heads({at: fit.survey.head_energy(fit.source, fit.stream, at) for at in layers}, source, target)
    energies = [fit.survey.unit_energy(fit.source, fit.stream, at) for at in layers]
    owner = torch.cat([torch.full((len(energy_u),), at) for at, energy_u in zip(layers, energies, strict=True)])
    number = torch.cat([torch.arange(len(energy_u)) for energy_u in energies])
    count = min(len(owner), fit.target.view("ffn.down.weight", layer).shape[1])
    kept = torch.sort(torch.cat(energies), descending=True, stable=True).indices[:count].cpu().sort().values
    units = {at: number[kept[owner[kept] == at]] for at in layers}
    return Taken(layers, heads, units)


def visit(fit: TransformerFit, layer: int, taken: Taken) -> Seen:
    """Run the source's layers on all chunks and stand behind them."""
    seen = Seen(_gram(fit, layer, taken), [], [], [], [])
    query: Point = (fit.target.computing("attention.query.weight", layer), "input")
    advances = fit.boundaries[layer + 1] > fit.boundaries[layer]
    for chunk in range(len(fit.tokens)):
        stream_btD, passes = fit.source_walk.streams[chunk], {}
        for at in taken.layers:
            stream_btD, passes[at] = fit.source_walk.run(chunk, at, _points(fit.source, at), stream_btd=stream_btD)
        if advances:
            fit.source_walk.streams[chunk] = stream_btD.cpu()
        last = passes[taken.layers[-1]]
        seen.middle_nd.append(fit.want(fit.middle(layer), chunk, last["middle"]))
        if "sums" in last and not fit.target.structure.family.prenorm:
            seen.sums_nd.append(fit.tokens.at_target(chunk, last["sums"]))
            seen.outputs_nd.append(fit.tokens.at_target(chunk, last["outputs"]))
        read = {at: _read(fit, chunk, at, recorded) for at, recorded in passes.items()}
        seen.units_nu.append(_units(taken, read).cpu())
        inputs = fit.target_walk.run(chunk, layer, {"inputs": query}, stop="inputs")[1]["inputs"]
        seen.heads.add(fit.tokens.of_target(chunk, inputs), _heads(fit, taken, read).to(inputs))
    seen.heads.sum_over(fit.sum_)
    if seen.sums_nd:
        _map_sums(fit, "attention.norm", taken.layers[-1], fit.middle(layer), seen.sums_nd)
        _map_sums(fit, "ffn.norm", taken.layers[-1], fit.boundaries[layer + 1], seen.outputs_nd)
    return seen


def _map_sums(fit: TransformerFit, role: str, layer: int, boundary: int, sums_nD: list[Tensor]) -> None:
    """Map what a norm of the source reads to what the target's norm should read, in place.

    It is linear in what the layer computes, and the target's norm gives each token its length, as the source's does.
    The source's gain comes before the map, because it can make an entry small that is large before the norm. Where the
    target's stream has all of the source's entries nothing is changed: its norm can have the source's gain.
    Equation: u' = (u − ū) G P / (σ s̄), with ū a token's mean, G the gain, s̄ the mean of the tokens' deviations.
    """
    if fit.keeps_entries:
        sums_nD[:] = [fit.stream.wanted(2 * layer, u_nD).cpu() for u_nD in sums_nD]
        return
    gain_D = fit.source.view(f"{role}.weight", layer)
    totals = torch.zeros(2, dtype=torch.float64, device=fit.source.device)
    for u_nD in sums_nD:
        totals += torch.stack([u_nD.double().std(1, correction=0).sum(), totals.new_tensor(len(u_nD))])
    fit.sum_(totals)
    P_Dd = fit.stream.P_Dd.to(gain_D) / (float(totals[0] / totals[1]) * fit.stream.scales[boundary])
    sums_nD[:] = [((u_nD - u_nD.mean(1, keepdim=True)) * gain_D @ P_Dd).cpu() for u_nD in sums_nD]


def _gram(fit: TransformerFit, layer: int, taken: Taken) -> Gram:
    dimensions = fit.source.structure.dimensions
    width = fit.source.view("attention.query.weight", taken.layers[0]).shape[0] // dimensions.heads
    heads = sum(head is not None for head in taken.heads)
    inputs = fit.target.view("attention.query.weight", layer).shape[1]
    return Gram(inputs, 3 * width * heads, fit.target.device)


def _points(source: RoleWeights, layer: int) -> dict[str, Point]:
    """What is recorded of one of the source's layers."""
    roles = [*ROLES, "ffn.up", *(["ffn.gate"] if source.structure.family.gated else [])]
    points: dict[str, Point] = {role: (source.computing(f"{role}.weight", layer), "output") for role in roles}
    points["middle"] = source.middle(layer)
    if not source.structure.family.prenorm:
        points["sums"] = (source.computing("attention.norm.weight", layer), "input")
        points["outputs"] = (source.computing("ffn.norm.weight", layer), "input")
    return points


def _read(fit: TransformerFit, chunk: int, layer: int, recorded: Recorded) -> dict[str, Tensor]:
    """What each projection writes at the target's tokens."""
    roles = [role for role in recorded if fit.source.has(f"{role}.weight", layer)]
    outputs = {role: fit.source.outputs(f"{role}.weight", layer) for role in roles}
    return {role: fit.tokens.at_target(chunk, recorded[role][..., outputs[role]]) for role in roles}


def _units(taken: Taken, read: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
    """The chosen units side by side, gates first."""
    parts = [
        read[layer][role][:, units.to(read[layer][role].device)]
        for role in ("ffn.gate", "ffn.up")
        for layer, units in taken.units.items()
        if role in read[layer]
    ]
    return torch.cat(parts, dim=1)


def _heads(fit: TransformerFit, taken: Taken, read: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
    """Queries, keys and values of each chosen head side by side."""
    dimensions = fit.source.structure.dimensions
    counts = (dimensions.heads, dimensions.key_value_heads, dimensions.key_value_heads)
    parts = [
        read[head.layer][role].chunk(count, dim=1)[index]
        for head in taken.heads
        if head is not None
        for role, count, index in zip(ROLES, counts, (head.head, head.group, head.group), strict=True)
    ]
    return torch.cat(parts, dim=1)
