"""The anchored operator against a float64 reference, written from its equations with loops."""

import numpy
import pytest
import torch

from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.methods.anchored import Anchored
from mergenet_core.transfer.methods.anchored_step import (
    HeadLayout,
    SourceUnits,
    StepParameters,
    WeightUpdate,
    anchored_step,
    attention_map,
    key_products,
)
from mergenet_core.transfer.views import view_of
from tests.transfer.tiny import applied, batch, bert, cnn, context, logits, mlp, paired, transfer, vit

ANCHORED = TransferSpec(method="anchored")


def normal(X):
    return X / numpy.sqrt((X**2).mean(1, keepdims=True))


def softmax(Z):
    E = numpy.exp(Z - Z.max(1, keepdims=True))
    return E / E.sum(1, keepdims=True)


def reference_map(X, Y, Wq, Wk):
    Z = 16 * (normal(X) @ Wq) @ (normal(Y) @ Wk).T / X.shape[1]
    K = numpy.exp(Z - Z.max())
    for _ in range(5):
        K = K / K.sum(1, keepdims=True)
        K = K / K.sum(0, keepdims=True)
    return K / K.sum(1, keepdims=True)


def reference_mixed(X, Y, P, Wv, gate):
    Yn = normal(Y)
    M = normal(P @ (Yn + Yn @ Wv))
    size = numpy.sqrt((X**2).mean(1, keepdims=True))
    moved = X + numpy.tanh(gate) * (size * M - X)
    return moved * size / numpy.sqrt((moved**2).mean(1, keepdims=True))


@pytest.mark.parametrize(("t", "s", "d"), [(7, 12, 9), (5, 3, 11), (4, 4, 4)])
def test_the_operator_is_its_equations(t, s, d):
    generator = torch.Generator().manual_seed(t)
    rank = min(s, d)
    X, B, A = (torch.randn(*shape, generator=generator).double() for shape in ((t, d), (s, rank), (rank, d)))
    Wk, Wv = (0.3 * torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in range(2))
    gate, weight = torch.tensor(0.4, dtype=torch.float64), X.clone()
    update, parameters = new_update(weight), StepParameters(A @ Wv, gate, A @ Wk)
    (product,) = key_products([update], [parameters.product_rows(A)])
    _, units = anchored_step(update, SourceUnits(B, A), product, parameters)
    Y, eye = (B @ A).numpy(), numpy.eye(d)
    expected = reference_map(X.numpy(), Y, eye, eye + Wk.numpy())
    assert units is not None
    numpy.testing.assert_allclose(units.P.numpy(force=True), expected, atol=1e-6)
    update.write_()
    expected = reference_mixed(X.numpy(), Y, expected, Wv.numpy(), 0.4)
    numpy.testing.assert_allclose(weight.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (6, 9), (9, 4), (600, 3)])
def test_the_gradient_of_the_sinkhorn_map_is_that_of_its_equations(shape):
    generator = torch.Generator().manual_seed(0)
    X, Y, *mixed = (
        3 * torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((shape[0], 5), (shape[1], 5), (shape[1], 4), (shape[1], 2))
    )
    inputs = [value.requires_grad_() for value in (X, Y, *mixed)]
    into = [torch.randn(shape[0], k, generator=generator, dtype=torch.float64) for k in (4, 2)]

    def plain(X, Y, *mixed):
        Z = 16 / 5 * X @ Y.T
        for _ in range(5):
            Z = torch.log_softmax(torch.log_softmax(Z, dim=1), dim=0)
        return [torch.softmax(Z, dim=1) @ one for one in mixed]

    def before(X, Y, *mixed):
        units = attention_map(X, Y, 5)
        return [units.mix(one) for one in mixed]

    expected, found = plain(*inputs), before(*inputs)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(outputs, inputs, into) for outputs in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_without_a_map_each_unit_moves_to_its_counterpart_and_units_without_one_stay():
    X, A = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    B = torch.cat([torch.randn(3, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)])
    weight = X.clone()
    update, parameters = new_update(weight), StepParameters(torch.zeros_like(A), torch.tensor(0.4).double())
    (product,) = key_products([update], [parameters.product_rows(A)])
    anchored_step(update, SourceUnits(B, A), product, parameters)
    update.write_()
    expected = reference_mixed(X[:3].numpy(), (B @ A)[:3].numpy(), numpy.eye(3), numpy.zeros((4, 4)), 0.4)
    numpy.testing.assert_allclose(weight[:3].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(weight[3:], X[3:])


def new_update(weight):
    view = view_of(weight)
    return WeightUpdate(view, view.squares())


def test_the_rows_of_a_head_stay_together():
    X, Y = torch.randn(6, 5), torch.randn(9, 5)
    units = attention_map(X, Y, 5, HeadLayout(3))
    assert units.P.shape == (2, 3)
    torch.testing.assert_close(units.P.sum(1), torch.ones(2))
    torch.testing.assert_close(units.mix(Y), torch.kron(units.P, torch.eye(3)) @ Y)


def truncated(W, rank):
    U, S, V = numpy.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank]


def test_each_map_of_a_chain_is_carried_into_the_next_layer():
    source, target = mlp((9, 11), seed=0).double(), mlp((7, 5), seed=1).double()
    pairing = paired(source, target, ANCHORED)
    before = {name: W.numpy().copy() for name, W in target.state_dict().items()}
    source_weights = {name: W.numpy() for name, W in source.state_dict().items()}
    ranks = {pair.target: pair.rank for pair in pairing.pairs}
    Anchored(context(source, target, ANCHORED)).write()
    P = None
    for name in ("layers.0.weight", "layers.1.weight"):
        Y = truncated(source_weights[name], ranks[name])
        Y = Y if P is None else Y @ P.T
        eye = numpy.eye(Y.shape[1])
        P = reference_map(before[name], Y, eye, eye)
        expected = reference_mixed(before[name], Y, P, 0 * eye, numpy.arctanh(0.3))
        numpy.testing.assert_allclose(target.state_dict()[name].numpy(), expected, atol=1e-6)
    Y = truncated(source_weights["head.weight"], ranks["head.weight"]) @ P.T  # labels are shared: their rows stay
    expected = reference_mixed(before["head.weight"], Y, numpy.eye(3), numpy.zeros((5, 5)), numpy.arctanh(0.3))
    numpy.testing.assert_allclose(target.state_dict()["head.weight"].numpy(), expected, atol=1e-6)


def wider(seed):
    """A source, and a target that is wider in every axis."""
    return bert(8, 2, inner=10, seed=seed) if seed == 0 else bert(16, 2, inner=24, seed=seed)


@pytest.mark.parametrize(
    ("source", "target"),
    [(bert(16, 1), bert(8, 1, heads=2, inner=6, seed=1)), (bert(8, 1, inner=10), bert(16, 1, inner=24, seed=1))],
    ids=["narrower", "wider"],
)
def test_one_map_serves_the_whole_residual_stream(source, target):
    source, target = source.double(), target.double()
    width, inner = target.config.hidden_size, target.config.intermediate_size
    units, hidden = (
        min(getattr(one.config, name) for one in (source, target)) for name in ("hidden_size", "intermediate_size")
    )
    pairing = paired(source, target, ANCHORED)
    method = Anchored(context(source, target, ANCHORED))
    start = {name: W.double().numpy() for name, W in applied(method.start, target).items()}
    before = {name: W.numpy().copy() for name, W in target.state_dict().items()}
    ranks = {pair.target: pair.rank for pair in pairing.pairs}
    word = "bert.embeddings.word_embeddings.weight"
    rank = ranks[word]
    with torch.no_grad():  # learned a little: a key that is no longer the identity
        method.parameters["stream.key"].add_(0.1 * torch.randn(rank, rank, dtype=torch.float64))
        key = numpy.eye(rank) + method.parameters["stream.key"].numpy()
    method.write()
    start[word][:, units:] = 0
    B = numpy.linalg.svd(start[word], full_matrices=False)[0][:, :rank]
    signs = numpy.sign((B.T @ method.factors[f"{word}.coordinates"].numpy()).diagonal())
    B = B * signs
    X, Y = (B.T @ before[word]).T, (B.T @ start[word]).T[:units]
    P = reference_map(X, Y, numpy.eye(rank), key)
    assert P.shape == (width, units)
    moved = reference_mixed(X, Y, P, numpy.zeros((rank, rank)), numpy.arctanh(0.3))
    numpy.testing.assert_allclose(target.state_dict()[word].numpy(), before[word] + B @ (moved - X).T, atol=1e-6)
    up = "bert.encoder.layer.0.intermediate.dense.weight"
    Y = truncated(start[up][:hidden], ranks[up])[:, :units] @ P.T
    ffn = reference_map(before[up], Y, numpy.eye(width), numpy.eye(width))
    assert ffn.shape == (inner, hidden)
    expected = reference_mixed(before[up], Y, ffn, numpy.zeros((width, width)), numpy.arctanh(0.3))
    numpy.testing.assert_allclose(target.state_dict()[up].numpy(), expected, atol=1e-6)
    down = "bert.encoder.layer.0.output.dense.weight"
    Y = truncated(start[down][:units], ranks[down])[:, :hidden] @ ffn.T
    expected = reference_mixed(before[down], Y, P, numpy.zeros((inner, inner)), numpy.arctanh(0.3))
    numpy.testing.assert_allclose(target.state_dict()[down].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("build", [bert, wider, vit, mlp, cnn])
def test_the_gradient_is_that_of_the_loss_through_the_operator(build):
    """A small step along a random direction changes the loss by the gradient's product with it, in float64."""
    source, target = build(seed=0).double(), build(seed=1).double()
    source.load_state_dict({name: W * 1.3 if W.is_floating_point() else W for name, W in source.state_dict().items()})
    spec = TransferSpec(method="anchored", gate=0.3)
    method = Anchored(context(source, target, spec))
    target.eval()
    inputs = {name: X.double() if X.is_floating_point() else X for name, X in batch(target).items()}
    labels = torch.arange(8) % 3
    kept = {name: W.detach().clone() for name, W in target.state_dict().items()}

    def loss_at():
        method.write()
        loss = torch.nn.functional.cross_entropy(target(**inputs).logits, labels)
        return loss

    target.zero_grad()
    loss_at().backward()
    method.backward()
    parameters = dict(target.named_parameters()) | {f"M.{k}": v for k, v in method.parameters.items()}
    gradients = {name: W.grad.clone() for name, W in parameters.items() if W.grad is not None}
    assert {f"M.{name}" for name in method.parameters} - gradients.keys() <= {"M.stream.key"}
    generator = torch.Generator().manual_seed(5)
    direction = {name: torch.randn(G.shape, generator=generator, dtype=torch.float64) for name, G in gradients.items()}
    slope = sum(float((G * direction[name]).sum()) for name, G in gradients.items())
    values, adapter = [], {name: value.detach().clone() for name, value in method.parameters.items()}
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for name, W in target.state_dict().items():
                W.copy_(kept[name] + step * direction[name] if name in direction else kept[name])
            for name, value in method.parameters.items():
                value.copy_(adapter[name] + step * direction[f"M.{name}"])
            values.append(float(loss_at()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("build", [bert, vit, mlp, cnn])
def test_a_gate_of_zero_changes_nothing(build):
    source, target = build(seed=0), build(seed=1)
    moving = transfer(source, target, TransferSpec(method="anchored", gate=0.0))
    moving.start()
    before = logits(target)
    moving.before(0)
    torch.testing.assert_close(logits(target), before, atol=1e-6, rtol=1e-5)
    moving = transfer(source, target, ANCHORED)
    moving.before(0)
    assert (logits(target) - before).abs().max() > 1e-4


def test_a_chain_starts_from_its_own_weights_and_a_stream_from_the_projection():
    target = mlp(seed=1)
    before = logits(target)
    transfer(mlp(seed=0), target, ANCHORED).start()
    assert torch.equal(logits(target), before)
    source, target = bert(seed=0), bert(seed=1)
    transfer(source, target, ANCHORED).start()
    torch.testing.assert_close(logits(target), logits(source), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_a_transfer_has_three_batches_at_any_depth(layers):
    """First the words, whose map all layers use; then weights that make maps from it, then weights that use those."""
    source, target = bert(16, layers), bert(8, layers, inner=6, seed=1)
    method = Anchored(context(source, target, ANCHORED))
    batches = [{pair.role.removesuffix(".weight") for pair in batch} for batch in method.batches]
    assert batches[0] == {"embeddings.word"}
    assert {"attention.query", "attention.key", "attention.value", "ffn.up"} <= batches[1]
    assert {"attention.out", "ffn.down"} <= batches[2]
    assert len(batches) == 3
