"""The layers of a block before its last: which of the source's units they stand for, and their least squares.

Legend: b images, c channels, h height, w width, u units of the source, k entries of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mergenet_core.fitting.cnn.bases import LEAST_VARIANCE
from mergenet_core.fitting.cnn.layers import (
    RIDGE,
    Example,
    channel_moments,
    gram_of,
    normalise,
    solve_depthwise,
    solve_layers,
)
from mergenet_core.fitting.cnn.parts import Layer, Part, Seen, observe, patches, places, resized_as
from mergenet_core.fitting.context import FitContext

IN_LINEAR_PART = 3.0
"""Deviations between a channel's mean and 0, so that a ReLU changes next to nothing."""


@dataclass(frozen=True)
class Step:
    """A part of the target, the part of the source that it stands for, and what both read, chunk by chunk."""

    context: FitContext
    source: Part
    target: Part
    sources: Sequence[Tensor]
    targets: Sequence[Tensor]

    def seen(self) -> Iterator[tuple[Seen, Seen]]:
        """What passes through both, chunk by chunk."""
        for source, target in zip(self.sources, self.targets, strict=True):
            yield observe(self.source, source), observe(self.target, target)

    def examples(self, wanted: Callable[[Seen, Seen], Tensor]) -> Iterator[Example]:
        """What passes through the target's part, and what is wanted."""
        for source, target in self.seen():
            yield target, wanted(source, target)


def solve_hidden(step: Step) -> None:
    """Solve the hidden layers, towards units of the source's layers of the same roles where it has them."""
    if [layer.role for layer in step.target.hidden] == [layer.role for layer in step.source.hidden]:
        _solve_same(step)
    else:
        _solve_other(step)


def _solve_same(step: Step) -> None:
    """Each layer towards what the source's layer of its role gives for the chosen units, before the activation."""
    order = _units_by_energy(step)
    for layer in step.target.hidden:
        units = order[layer.role][: layer.width].sort().values

        def wanted(source: Seen, target: Seen, role: str = layer.role, units: Tensor = units) -> Tensor:
            return resized_as(source.normed[role][:, units], target.raw[role])

        if layer.form == "depthwise":
            solve_depthwise(step.context, layer, step.examples(wanted))
        else:
            solve_layers(step.context, [layer], step.examples(wanted))


def _units_by_energy(step: Step) -> dict[str, Tensor]:
    """By role: the source's hidden units, those first that move the next layer's outputs most.

    Equation: the variance of a unit's activation · the square sum of its weights into the next layer. A depthwise layer
    has the units of the layer before it.
    """
    found: dict[str, Tensor] = {}
    chain = (*step.source.hidden, step.source.last)
    for number, after in enumerate(chain[1:]):
        if after.form == "depthwise":
            continue
        read = (source.inputs[after.role] for source, _ in step.seen())
        _, variance_u = channel_moments(step.context, read)
        assert after.norm.running_var is not None, "BatchNorms keep statistics"
        gain_o = after.norm.weight.double() / (after.norm.running_var.double() + after.norm.eps).sqrt()
        weight = after.convolution.weight.double() * gain_o[:, None, None, None]
        order_u = (variance_u * weight.square().sum(dim=(0, 2, 3))).argsort(descending=True, stable=True)
        found |= {layer.role: order_u for layer in chain[: number + 1] if layer.role not in found}
    return found


@dataclass(frozen=True)
class _Units:
    """Units of the source that do the work of hidden units of another kind of block, before their activation."""

    part: Part
    factor_u: Tensor
    """Scales each to a deviation of 1."""
    energy_u: Tensor
    """The variance of the activation, unscaled."""

    def wanted(self, source: Seen, like: Tensor) -> Tensor:
        """The units at the height and width of other feature maps. Shapes: (b, u, h, w)."""
        X_buhw = resized_as(_units(self.part, source), like)
        return X_buhw * self.factor_u.to(X_buhw)[:, None, None]


def _units(part: Part, seen: Seen) -> Tensor:
    """The last hidden layer, and where the block ends in an activation what goes into it."""
    if not part.hidden:
        return seen.summed
    hidden = seen.normed[part.hidden[-1].role]
    return hidden if part.linear else torch.cat([resized_as(hidden, seen.summed), seen.summed], dim=1)


def _solve_other(step: Step) -> None:
    """A k × k layer towards the source's units; a 1 × 1 layer and the one behind it by re-encoding them."""
    context, hidden = step.context, step.target.hidden
    if not hidden:
        return
    units = _find_units(step)
    order: Tensor | None = None
    """The unit that each channel of the layer before stands for, if it stands for one."""
    for layer, after in zip(hidden, (*hidden[1:], step.target.last), strict=True):
        if layer.form == "depthwise" and order is None:
            middle = layer.convolution.weight[0].numel() // 2
            layer.convolution.weight.flatten(1).copy_(nn.functional.one_hot(torch.tensor(middle), 2 * middle + 1))
            normalise(context, layer, (target for _, target in step.seen()), IN_LINEAR_PART)
        elif layer.convolution.kernel_size == (1, 1):
            order = _reencode(step, layer, after, units)
        else:
            chosen = units.energy_u.argsort(descending=True, stable=True)[: layer.width].sort().values

            def wanted(
                source: Seen, target: Seen, role: str = layer.role, chosen: Tensor = chosen if order is None else order
            ) -> Tensor:
                return units.wanted(source, target.raw[role])[:, chosen]

            if layer.form == "depthwise":
                solve_depthwise(context, layer, step.examples(wanted))
            else:
                solve_layers(context, [layer], step.examples(wanted))
                order = None


def _find_units(step: Step) -> _Units:
    def raw() -> Iterator[Tensor]:
        return (_units(step.source, observe(step.source, x)) for x in step.sources)

    _, variance_u = channel_moments(step.context, raw())
    _, energy_u = channel_moments(step.context, (torch.relu(X) for X in raw()))
    return _Units(step.source, variance_u.clamp_min(LEAST_VARIANCE).rsqrt(), energy_u)


def _reencode(step: Step, layer: Layer, after: Layer, units: _Units) -> Tensor | None:
    """Write a 1 × 1 layer that gives what the next, k × k layer needs, in the linear part of the activation between.

    The source's units are regressed on what a dense k × k layer would read of the target's input. Before a depthwise
    layer, a unit's kernel is a (channels × places) matrix, whose singular pairs are a row of this layer and a depthwise
    kernel; pairs are taken by their share of the activation's variance. Before a dense layer, the rows are the
    singular vectors of all kernels together. Returns the unit of each row of the first kind.
    """
    context, width = step.context, layer.width

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for source, target in step.seen():
            x = _padded(target.x, target.inputs[after.role])
            yield patches(x, after.convolution), places(units.wanted(source, target.raw[after.role]))

    W_iu = gram_of(context, rows()).solve(RIDGE).W_io
    _, variance_c = channel_moments(context, (observe(step.target, x).x for x in step.targets))
    deviation_c = variance_c.clamp_min(LEAST_VARIANCE).sqrt()
    W_uck = W_iu.T.reshape(W_iu.shape[1], len(deviation_c), -1) * deviation_c[:, None]
    unit_r: Tensor | None = None
    if after.form == "depthwise":
        U_ucr, S_ur, _ = torch.linalg.svd(W_uck, full_matrices=False)
        share_ur = S_ur.square() * units.energy_u[:, None]
        pair_r = share_ur.flatten().argsort(descending=True, stable=True)[:width]
        unit_r = pair_r // S_ur.shape[1]
        A_rc = U_ucr[unit_r, :, pair_r % S_ur.shape[1]]
    else:
        U_cr = torch.linalg.svd(W_uck.movedim(1, 0).flatten(1), full_matrices=False)[0]
        A_rc = U_cr.T[:width]
    A_rc = _signed(A_rc) / deviation_c
    layer.convolution.weight.flatten(1)[: len(A_rc)] = A_rc.to(layer.convolution.weight)
    normalise(context, layer, (target for _, target in step.seen()), IN_LINEAR_PART)
    return unit_r


def _padded(x: Tensor, like: Tensor) -> Tensor:
    """Feature maps with the padding of others, where a model pads outside of its convolution."""
    height, width = (one - other for one, other in zip(like.shape[-2:], x.shape[-2:], strict=True))
    return nn.functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def _signed(rows: Tensor) -> Tensor:
    """Rows whose largest entry is positive: a decomposition leaves the sign open, and processes have to agree."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign()
