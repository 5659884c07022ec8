"""The released code's adapter against a numpy reference, written from a description of it."""

from __future__ import annotations

import copy
import math

import numpy
import pytest
import torch

from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.methods.lpka_raw import LpkaRaw, RawAdapter
from tests.transfer.tiny import batch, cnn, context, transfer
from tests.transfer.tiny import mlp as tiny_mlp

SPEC = TransferSpec(method="lpka-raw", cycle=2, stop_at=1.0)


def layer_norm(X, weight, bias):
    centred = X - X.mean(1, keepdims=True)
    return centred / numpy.sqrt((centred**2).mean(1, keepdims=True) + 1e-12) * weight + bias


def attention(T, S, weights, name, heads=8):
    Q, K, V = (
        X @ weights[f"{name}.{part}.weight"].T + weights[f"{name}.{part}.bias"]
        for X, part in ((T, "query"), (S, "key"), (S, "value"))
    )
    size, context = Q.shape[1] // heads, []
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        E = numpy.exp(Q[:, at] @ K[:, at].T / math.sqrt(size))
        context.append(E / E.sum(1, keepdims=True) @ V[:, at])
    out = numpy.concatenate(context, 1) @ weights[f"{name}.out.weight"].T + weights[f"{name}.out.bias"]
    return layer_norm(T + out, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])


def spectral(X, weights, name):
    W, u = weights[f"{name}.weight"], weights[f"{name}.left"]
    v = W.T @ u
    v = v / numpy.sqrt(v @ v)
    u = W @ v
    u = u / numpy.sqrt(u @ u)
    return X @ (W / (u @ W @ v)).T + weights[f"{name}.bias"]


def reference(adapter, W, S):
    weights = {name: value.detach().numpy().copy() for name, value in adapter.state_dict().items()}
    for k in range(2):
        at = f"layers.{k}"
        attended = (
            attention(W, S, weights, f"{at}.rows_rows")
            + attention(W, S.T, weights, f"{at}.rows_columns")
            + attention(W.T, S, weights, f"{at}.columns_rows").T
            + attention(W.T, S.T, weights, f"{at}.columns_columns").T
        ) / 4
        up = spectral(attended, weights, f"{at}.up")
        gelu = up * 0.5 * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        made = attended + spectral(gelu, weights, f"{at}.down")
        W = layer_norm(made, weights[f"{at}.norm.weight"], weights[f"{at}.norm.bias"])
    return W


@pytest.mark.parametrize(("target", "source"), [((16, 24), (9, 40)), ((6, 20), (7, 300))])
def test_the_forward_pass_is_that_of_the_released_code(target, source):
    torch.manual_seed(0)
    adapter = RawAdapter(target, source).double().eval()  # without dropout
    with torch.no_grad():
        for value in adapter.parameters():
            value.add_(0.1 * torch.randn_like(value))
    W, S = torch.randn(*target, dtype=torch.float64), torch.randn(*source, dtype=torch.float64)
    expected = reference(adapter, W.numpy(), S.numpy())
    assert numpy.abs(adapter(W, S).detach().numpy() - expected).max() < 1e-6


def test_the_papers_largest_pair_has_the_parameters_of_the_released_adapter():
    """MobileNetV2's 160 × 960 from ResNet50's 100 × 2048: 37.6 million, for a target of 2.37 million."""
    with torch.device("meta"):
        adapter = RawAdapter((160, 960), (100, 2048))
    assert sum(value.numel() for value in adapter.parameters()) == pytest.approx(37.6e6, rel=2e-3)


def test_training_drops_scores_and_outputs():
    torch.manual_seed(0)
    adapter = RawAdapter((16, 24), (9, 40))
    rates = sorted(module.p for module in adapter.modules() if isinstance(module, torch.nn.Dropout))
    assert rates == [0.1] * 8 + [0.2] * 10
    W, S = torch.randn(16, 24), torch.randn(9, 40)
    assert not torch.equal(adapter(W, S), adapter(W, S))


def test_there_are_two_layers_and_the_feed_forward_is_twice_as_wide():
    adapter = RawAdapter((8, 24), (16, 40))
    assert len(adapter.layers) == 2
    assert adapter.layers[0].up.weight.shape == (48, 24)


def test_power_steps_find_the_largest_singular_value():
    torch.manual_seed(0)
    layer = RawAdapter((8, 8), (8, 8)).layers[0].up
    for _ in range(200):
        made = layer(torch.eye(8)) - layer.bias
    assert torch.linalg.matrix_norm(made.detach(), 2).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("make", [tiny_mlp, cnn])
def test_a_transfer_writes_the_output_over_the_weight_and_learns_towards_the_step(make):
    source, target = make(seed=1), make(seed=2)
    raw = LpkaRaw(context(source, target, SPEC, seed=3))
    raw.write()
    made = dict(raw.outputs)
    weights = dict(target.named_parameters())
    for name, out in made.items():
        assert torch.equal(weights[name].reshape(out.shape), out.detach())
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(0.01 * torch.randn_like(weight))
    loss = sum((0.5 * (out - weights[name].detach().reshape(out.shape)) ** 2).sum() for name, out in made.items())
    expected = torch.autograd.grad(loss, list(raw.parameters.values()), retain_graph=True, allow_unused=True)
    raw.after_step()
    for parameter, gradient in zip(raw.parameters.values(), expected, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_the_adapter_learns_and_its_gradient_is_clipped_at_its_own_norm(monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda values, norm: norms.append(norm) or clip(list(values), norm)
    )
    source, target = tiny_mlp(seed=1), tiny_mlp(seed=2)
    moving = transfer(source, target, SPEC)
    before = {name: value.clone() for name, value in moving.adapter_tensors().items()}
    train(target, moving, 1)
    assert norms == [50.0]
    after = moving.adapter_tensors()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    biases = {name for name in before if name.endswith(("key.bias",))}  # softmax does not depend on a key's bias
    assert changed >= {name for name in before if not name.startswith("source.")} - biases


def train(target, made, steps, first=0, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(target.parameters(), 0.1)
    losses = []
    for step in range(first, first + steps):
        torch.manual_seed(step)  # of the dropout, as the training loop does
        made.before(step)
        optimizer.zero_grad()
        loss = target(**batch(target, seed=step)).logits.square().mean()
        loss.backward()
        made.after_backward(step)
        optimizer.step()
        made.after_step(step)
        losses.append(loss.item())
    return losses


def test_a_resumed_run_continues_bit_for_bit():
    source, target = tiny_mlp(seed=1), tiny_mlp(seed=2)
    made = transfer(source, target, SPEC)
    train(target, made, 4)
    state = copy.deepcopy({"transfer": made.state_dict(), "target": target.state_dict()})
    continued = train(target, made, 4, first=4)
    again = tiny_mlp(seed=2)
    again.load_state_dict(state["target"])
    resumed = transfer(source, again, SPEC)
    resumed.load_state_dict(state["transfer"])
    assert train(again, resumed, 4, first=4) == continued
