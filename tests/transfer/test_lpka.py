"""The adapter against a float64 reference, written from the paper's equations."""

import math

import numpy
import pytest
import torch

from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.methods.lpka import Adapter, Lpka
from mergenet_core.transfer.reencode import refactorize
from mergenet_core.transfer.views import WeightView, view_of
from tests.transfer.tiny import batch, bert, cnn, context, matrix, mlp, paired, shards

SPEC = {"method": "lpka", "width": 8, "heads": 2, "layers": 2}


def linear(X, weights, name):
    bias = weights.get(f"{name}.bias")
    return X @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def layer_norm(X, weights, name):
    centred = X - X.mean(1, keepdims=True)
    return (
        centred / numpy.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def normal(X):
    return X / numpy.sqrt((X**2).mean(1, keepdims=True))


def reference_adapter(adapter, pair, B, A, B_l, A_l, heads):
    weights = {name: value[pair].detach().numpy() for name, value in adapter.named_parameters()}
    scale = normal if adapter.gated else (lambda X: X)
    T = numpy.concatenate([linear(scale(A), weights, "target_rows"), linear(scale(B.T), weights, "target_columns")])
    S = numpy.concatenate([linear(scale(A_l), weights, "source_rows"), linear(scale(B_l.T), weights, "source_columns")])
    size = T.shape[1] // heads
    for k in range(len(adapter.layers)):
        name = f"layers.{k}"
        Q, K, V = (linear(X, weights, f"{name}.{part}") for X, part in ((T, "query"), (S, "key"), (S, "value")))
        context = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            E = numpy.exp(Q[:, at] @ K[:, at].T / math.sqrt(size))
            context.append(E / E.sum(1, keepdims=True) @ V[:, at])
        T = layer_norm(
            T + linear(numpy.concatenate(context, 1), weights, f"{name}.out"), weights, f"{name}.attention_norm"
        )
        up = linear(T, weights, f"{name}.up")
        gelu = up * 0.5 * (1 + numpy.vectorize(math.erf)(up / math.sqrt(2)))
        T = layer_norm(T + linear(gelu, weights, f"{name}.down"), weights, f"{name}.norm")
    rank = len(A)
    new = linear(T[:rank], weights, "rows"), linear(T[rank:], weights, "columns")
    if adapter.gated:
        new = tuple(
            _gated(old, made, weights[gate])
            for old, made, gate in zip((A, B.T), new, ("row_gate", "column_gate"), strict=True)
        )
    return new[1].T, new[0]


def _gated(old, made, gate):
    size = numpy.sqrt((old**2).mean(1, keepdims=True))
    moved = old + numpy.tanh(gate) * size * normal(made)
    return moved * size / numpy.sqrt((moved**2).mean(1, keepdims=True))


@pytest.mark.parametrize("gated", [True, False])
def test_the_adapter_is_its_equations(gated):
    torch.manual_seed(0)
    adapter = Adapter(2, (7, 5), (9, 11), TransferSpec(**SPEC, gated=gated)).double()
    with torch.no_grad():
        for value in adapter.parameters():
            value.add_(0.1 * torch.randn_like(value))
    B, A, B_l, A_l = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((7, 3), (3, 5), (9, 4), (4, 11)))
    new_B, new_A = adapter(B.mT, A, B_l.mT, A_l)
    for pair in range(2):
        expected = reference_adapter(adapter, pair, *(X[pair].numpy() for X in (B, A, B_l, A_l)), heads=2)
        for factor, reference in zip((new_B[pair].T, new_A[pair]), expected, strict=True):
            numpy.testing.assert_allclose(factor.detach().numpy(), reference, atol=1e-6)


def prepared(build, **settings):
    source, target = build(seed=0).double(), build(seed=1).double()
    spec = TransferSpec(**SPEC, **settings)
    method = Lpka(context(source, target, spec))
    with torch.no_grad():
        for value in method.parameters.values():
            value.add_(0.05 * torch.randn_like(value))
    weights = shards(target)
    views = {pair.target: WeightView(weights[pair.target], pair.form) for pair in paired(source, target, spec).pairs}
    return method, target, views


def dense_outputs(method, views_by_name):
    """W' = W + B'A' − BA of every pair as full matrices with their graph."""
    outputs = {}
    for names, adapter in method.adapters.items():
        views = [view_of(matrix(views_by_name[name]).clone()) for name in names]
        own = refactorize(views, [method.factors[f"{name}.own"] for name in names])
        source_factors = [(method.factors[f"{name}.B"].T, method.factors[f"{name}.A"]) for name in names]
        factors = (
            [B.T for B, _ in own],
            [A for _, A in own],
            [B for B, _ in source_factors],
            [A for _, A in source_factors],
        )
        new = zip(*adapter(*map(torch.stack, factors)), strict=True)
        for name, view, (B, A), (new_B, new_A) in zip(names, views, own, new, strict=True):
            outputs[name] = matrix(view) + new_B.T @ new_A - B @ A
    return outputs


@pytest.mark.parametrize("build", [bert, mlp, cnn])
def test_the_gradient_update_is_the_loss_s_gradient_through_the_full_weight(build):
    method, target, views = prepared(build)
    outputs = dense_outputs(method, views)
    method.write()
    for name, expected in outputs.items():
        torch.testing.assert_close(matrix(views[name]), expected.detach(), atol=1e-6, rtol=1e-6)
    inputs = {name: X.double() if X.is_floating_point() else X for name, X in batch(target).items()}
    target.zero_grad()
    torch.nn.functional.cross_entropy(target(**inputs).logits, torch.arange(8) % 3).backward()
    before = {name: value.grad.clone() for name, value in target.named_parameters()}
    dense = [views[name].shard.gradient().view(views[name].shape).clone() for name in outputs]
    expected = torch.autograd.grad(list(outputs.values()), list(method.parameters.values()), dense, allow_unused=True)
    method.backward()
    for parameter, gradient in zip(method.parameters.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(value.grad, before[name]) for name, value in target.named_parameters())


@pytest.mark.parametrize("build", [bert, mlp, cnn])
def test_the_hypernetwork_update_learns_towards_the_weights_after_the_target_s_step(build):
    method, target, views = prepared(build, update="hypernetwork")
    outputs = dense_outputs(method, views)
    method.write()
    with torch.no_grad():
        for name in outputs:
            target.state_dict()[name].add_(0.01 * torch.randn_like(target.state_dict()[name]))
    residual = [outputs[name].detach() - matrix(views[name]) for name in outputs]
    expected = torch.autograd.grad(
        list(outputs.values()), list(method.parameters.values()), residual, allow_unused=True
    )
    method.backward()
    assert all(parameter.grad is None for parameter in method.parameters.values())
    method.after_step()
    for parameter, gradient in zip(method.parameters.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-6)


def test_a_zero_gate_changes_nothing_and_can_still_open():
    source, target = mlp(seed=0), mlp(seed=1)
    spec = TransferSpec(**SPEC)
    before = {name: W.clone() for name, W in target.state_dict().items()}
    method = Lpka(context(source, target, spec))
    method.write()
    for name, W in target.state_dict().items():
        torch.testing.assert_close(W, before[name], atol=1e-6, rtol=1e-5)
    torch.nn.functional.cross_entropy(target(**batch(target)).logits, torch.arange(8) % 3).backward()
    method.backward()
    assert method.parameters["layers.0.weight.row_gate"].grad.abs() > 0


def test_models_that_share_no_axis_pair_by_name():
    source, target = bert(seed=0), cnn(seed=1)
    spec = TransferSpec(**SPEC, pairs=[{"source": "*.query.weight", "target": "blocks.[12].conv.weight"}])
    pairing = paired(source, target, spec)
    assert [pair.target for pair in pairing.pairs] == ["blocks.1.conv.weight", "blocks.2.conv.weight"]
    method = Lpka(context(source, target, spec))
    method.write()
    target(**batch(target)).logits.sum().backward()
    method.backward()
