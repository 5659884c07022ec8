"""A convolution and the BatchNorm behind it, from least squares.

Legend: b images, n places of all images, i inputs, o outputs, c channels, k entries of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mergenet_core.fitting.cnn.parts import Layer, Seen, patches, places
from mergenet_core.fitting.context import FitContext
from mergenet_core.fitting.gram import Affine, Gram

RIDGE = 1e-3
_LEAST_VARIANCE = 1e-10
_ROWS = 1 << 14
"""Places that are counted in at once, which bounds the memory."""

Example = tuple[Seen, Tensor]
"""What passed through a part, and the channels that are wanted of a layer; they may be fewer than it has."""


def gram_of(context: FitContext, rows: Iterable[tuple[Tensor, Tensor | None]]) -> Gram:
    """The sums of inputs and wanted outputs over the chunks of all processes. Shapes: (n, i), (n, o)."""
    gram = None
    for X_ni, Y_no in rows:
        if gram is None:
            gram = Gram(X_ni.shape[1], 0 if Y_no is None else Y_no.shape[1], X_ni.device)
        for start in range(0, len(X_ni), _ROWS):
            stop = start + _ROWS
            gram.add(X_ni[start:stop], None if Y_no is None else Y_no[start:stop])
    assert gram is not None, "every process has a chunk"
    return gram.sum_over(context.sum_)


def solve_layers(context: FitContext, layers: Sequence[Layer], examples: Iterable[Example]) -> Affine:
    """Solve layers whose outputs are added so that their sum is what is wanted.

    The first gives the constant, and its channels of which nothing is wanted keep their kernels, with a norm for them.
    """

    def rows() -> Iterable[tuple[Tensor, Tensor]]:
        for seen, wanted in examples:
            read = [patches(seen.inputs[layer.role], layer.convolution) for layer in layers]
            yield torch.cat(read, dim=1), places(wanted)

    gram = gram_of(context, rows())
    affine = gram.solve(RIDGE)
    mean_i, S_ii = gram.moments()
    start = 0
    for layer in layers:
        own = slice(start, start + layer.convolution.weight[0].numel())
        W_io, mean, S = affine.W_io[own], mean_i[own], S_ii[own, own]
        constant_o = affine.mean_o if start == 0 else torch.zeros_like(affine.mean_o)
        kept = layer.convolution.weight.flatten(1).T[:, W_io.shape[1] :].double()
        W_io = torch.cat([W_io, kept if start == 0 else torch.zeros_like(kept)], dim=1)
        write(layer, W_io, mean @ W_io, ((S @ W_io) * W_io).sum(0), constant_o)
        start = own.stop
    return affine


def solve_depthwise(context: FitContext, layer: Layer, examples: Iterable[Example]) -> None:
    """Solve a depthwise layer, each channel by itself; those of which nothing is wanted keep their kernels."""
    sums, solved = None, 0
    for seen, wanted in examples:
        Y_no, solved = places(wanted), wanted.shape[1]
        X_ni = patches(seen.inputs[layer.role], layer.convolution)
        X_cnk = X_ni.reshape(len(X_ni), layer.width, -1).movedim(1, 0)
        Y_cn1 = torch.zeros_like(X_cnk[..., :1])
        Y_cn1[:solved, :, 0] = Y_no.T
        for some in torch.split(torch.cat([torch.ones_like(Y_cn1), X_cnk, Y_cn1], dim=2), _ROWS, dim=1):
            products = some.double().mT @ some.double()
            sums = products if sums is None else sums + products
    assert sums is not None, "every process has a chunk"
    context.sum_(sums)
    mean = sums[:, 0] / sums[:, :1, 0]
    S = sums / sums[:, :1, :1] - mean[:, :, None] * mean[:, None, :]
    S_ckk, S_ck, mean_ck = S[:, 1:-1, 1:-1], S[:, 1:-1, -1], mean[:, 1:-1]
    scale_c = S_ckk.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_LEAST_VARIANCE)
    ridge_ckk = RIDGE * torch.diag_embed(scale_c[:, None].expand_as(S_ck))
    W_ck = layer.convolution.weight.flatten(1).double()
    W_ck[:solved] = torch.linalg.solve(S_ckk + ridge_ckk, S_ck)[:solved]
    variance_c = torch.einsum("ck,ckl,cl->c", W_ck, S_ckk, W_ck)
    write(layer, W_ck.T, (mean_ck * W_ck).sum(1), variance_c, mean[:solved, -1])


def normalise(context: FitContext, layer: Layer, seen: Iterable[Seen], mean: float) -> None:
    """Keep a layer's kernels; behind its norm every channel has this mean and a deviation of 1."""
    mean_o, variance_o = channel_moments(context, (one.raw[layer.role] for one in seen))
    W_io = layer.convolution.weight.flatten(1).T.double()
    write(layer, W_io, mean_o, variance_o, mean_o.new_empty(0))
    layer.norm.bias.fill_(mean)


def channel_moments(context: FitContext, maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean and variance of each channel. Shapes: (c), (c)."""
    sums = None
    for X_bchw in maps:
        X_nc = places(X_bchw).double()
        added = torch.stack([torch.full_like(X_nc[0], len(X_nc)), X_nc.sum(0), X_nc.square().sum(0)])
        sums = added if sums is None else sums + added
    assert sums is not None, "every process has a chunk"
    context.sum_(sums)
    mean_c = sums[1] / sums[0]
    return mean_c, (sums[2] / sums[0] - mean_c.square()).clamp_min(0)


def write(layer: Layer, W_io: Tensor, mean_o: Tensor, variance_o: Tensor, constant_o: Tensor) -> None:
    """Write a layer that gives x W, moved to a wanted mean; of further outputs, mean 0 and variance 1.

    The convolution is scaled to a variance of 1, which the norm's statistics say, so that a step of training finds the
    statistics that the fit used. Mean and variance are those of x W.
    """
    norm, weight, solved = layer.norm, layer.convolution.weight, len(constant_o)
    deviation_o = torch.where(variance_o > _LEAST_VARIANCE, variance_o, 1).sqrt()  # a dead channel stays as it is
    gain_o = deviation_o.clone()
    gain_o[solved:] = 1
    weight.copy_((W_io / deviation_o).T.reshape(weight.shape))
    assert norm.running_mean is not None, "BatchNorms keep statistics"
    assert norm.running_var is not None, "BatchNorms keep statistics"
    norm.running_mean.copy_(mean_o / deviation_o)
    norm.running_var.fill_(1)
    norm.weight.copy_(gain_o * (1 + norm.eps) ** 0.5)
    norm.bias.zero_()
    norm.bias[:solved] = constant_o
