"""The closed form of a fit between CNNs: the target's blocks one after the other, then its head.

The hidden layers of a block are solved towards units of the source (`hidden.py`), its last layer towards the source's
activations at the block's end, all on what the target itself has computed so far.

Legend: b images, c channels, h height, w width, s and t channels of source and target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mergenet_core.fitting.cnn.bases import Basis, channels, covariances, principal
from mergenet_core.fitting.cnn.hidden import IN_LINEAR_PART, Step, solve_hidden
from mergenet_core.fitting.cnn.layers import RIDGE, gram_of, solve_layers
from mergenet_core.fitting.cnn.match import halvings, match_parts
from mergenet_core.fitting.cnn.parts import Part, Seen, evaluating, module_of, observe, parts_of, places, resized_as
from mergenet_core.fitting.context import Boundary, FitContext, FitModel, Solved

_TINY = 1e-12
_IMAGES = "pixel_values"


def fit_cnn(context: FitContext, start: int = 0) -> Iterator[Solved]:
    """Write the weights of a CNN from those of another, block after block; the first `start` parts are written already.

    A part is a block, and where the labels are shared the head is the last one. Every process has at least one chunk.
    """
    ones, others = parts_of(context.source), parts_of(context.target)
    sources = [chunk.source[_IMAGES] for chunk in context.chunks]
    targets = [chunk.target[_IMAGES] for chunk in context.chunks]
    streams: dict[str, Basis] = {}
    passed = 0
    with evaluating(context.source.module, context.target.module):
        with torch.no_grad():
            spread = covariances(context, ones, sources)
        for number, (part, match) in enumerate(zip(others, _matches(context, ones, others), strict=True)):
            with torch.no_grad():
                while passed < match:
                    sources, passed = _outputs(ones[passed], sources), passed + 1
                step = Step(context, ones[match], part, sources, targets)
                boundary, variance = _boundary(step, streams, spread)
                solved = _solve(step, boundary, variance) if number >= start else None
                targets = _outputs(part, targets)
            if solved is not None:
                yield solved
        if context.columns is not None and start <= len(others):
            with torch.no_grad():
                solved = _solve_head(context, context.columns, _outputs(ones[-1], sources), targets)
            yield solved


def _matches(context: FitContext, ones: tuple[Part, ...], others: tuple[Part, ...]) -> list[int]:
    source, target = context.source.structure, context.target.structure
    if source.family is target.family and len(ones) == len(others):
        return list(range(len(ones)))
    first = context.chunks[0]
    with torch.no_grad():
        return match_parts(halvings(ones, first.source[_IMAGES]), halvings(others, first.target[_IMAGES]))


def _outputs(part: Part, inputs: list[Tensor]) -> list[Tensor]:
    return [observe(part, x).out.cpu() for x in inputs]


def _solve(step: Step, boundary: Boundary, variance: float) -> Solved:
    solve_hidden(step)
    part = step.target
    layers = [part.last] if part.shortcut is None else [part.last, part.shortcut]

    def wanted(source: Seen, target: Seen) -> Tensor:
        Z = _mapped(boundary, _end(step, source, target))
        return Z - target.x[:, : Z.shape[1]] if part.skip else Z

    affine = solve_layers(step.context, layers, step.examples(wanted))
    # of a least squares whose outputs have a variance v, error · v / (1 - error) is left of what was wanted
    left = float(affine.variance_o.sum()) * affine.error / max(1 - affine.error, _TINY)
    return Solved(part.name, left / max(variance, _TINY), boundary)


def _keeps_channels(step: Step) -> bool:
    """Whether single channels are taken as they are, since an activation ends both parts."""
    return not step.source.linear and not step.target.linear


def _end(step: Step, source: Seen, target: Seen) -> Tensor:
    """The source's activations at the end of its part, at the target's size.

    Before the activation where the target's does the same afterwards: a mean over places is not the same before it.
    """
    like = target.raw[step.target.last.role]
    same_size = source.summed.shape[-2:] == like.shape[-2:]
    return source.summed if _keeps_channels(step) and same_size else resized_as(source.out, like)


def _boundary(step: Step, streams: dict[str, Basis], spread: Mapping[str, Tensor]) -> tuple[Boundary, float]:
    """The map from the source's activations to the target's, and the variance of what it gives in all channels.

    Blocks on one residual stream of both models have the same basis. A stream of the target that goes on where the
    source's ends is turned to what the target's holds. A ReLU behind the directions is given them in its linear part.
    """
    part, own = step.target, step.source.last
    like = step.context.source.structure.family is step.context.target.structure.family

    def rows() -> Iterator[tuple[Tensor, None]]:
        for source, target in step.seen():
            X = places(_end(step, source, target))
            yield torch.cat([X, places(target.x)], dim=1) if part.skip else X, None

    mean, S = gram_of(step.context, rows()).moments()
    mean_s, S_ss = mean[: own.width], S[: own.width, : own.width]
    basis = streams.get(part.last.axis)
    if basis is None or basis.axis != own.axis:
        if _keeps_channels(step):
            basis = channels(own.axis, spread[own.axis], part.last.width, scaled=not like)
        else:
            basis = principal(own.axis, spread[own.axis], part.last.width)
            basis = basis.turned_to(S[: own.width, own.width :]) if part.skip else basis
        streams[part.last.axis] = basis
    variance_d = ((S_ss @ basis.map_sd) * basis.map_sd).sum(0).clamp_min(0)
    offset_d = mean_s @ basis.map_sd
    if not _keeps_channels(step):
        offset_d = torch.zeros_like(offset_d) if part.linear else IN_LINEAR_PART * variance_d.sqrt()
    unwanted = (0, part.last.width - len(offset_d))
    boundary = Boundary(
        target=part.name,
        source=step.source.name,
        mean_s=mean_s.float().cpu(),
        map_st=nn.functional.pad(basis.map_sd, unwanted).float().cpu(),
        offset_t=nn.functional.pad(offset_d, unwanted).float().cpu(),
    )
    return boundary, float(variance_d.sum())


def _mapped(boundary: Boundary, X_bshw: Tensor) -> Tensor:
    """What is wanted of the target's channels; those of which nothing is wanted are left out."""
    size = int(boundary.map_st.any(dim=0).sum())
    X = X_bshw - boundary.mean_s.to(X_bshw)[:, None, None]
    Z = torch.einsum("bshw,sd->bdhw", X, boundary.map_st[:, :size].to(X))
    return Z + boundary.offset_t[:size].to(X)[:, None, None]


def _solve_head(context: FitContext, columns: tuple[int, ...], sources: list[Tensor], targets: list[Tensor]) -> Solved:
    """The target's head, by the source's logits on what the target pools."""
    (_, teacher), (name, head) = _head(context.source), _head(context.target)

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for source, target in zip(sources, targets, strict=True):
            logits = teacher(source.mean(dim=(2, 3)).to(teacher.weight))
            yield target.mean(dim=(2, 3)).to(head.weight), logits[:, list(columns)]

    affine = gram_of(context, rows()).solve(RIDGE)
    head.weight.copy_(affine.W_io.T)
    head.bias.copy_(affine.b_o)
    return Solved(name, affine.error)


def _head(model: FitModel) -> tuple[str, nn.Linear]:
    weight = next(weight.name for weight in model.structure.weights if weight.role == "head.weight")
    return weight.removesuffix(".weight"), module_of(model.module, weight, nn.Linear)
