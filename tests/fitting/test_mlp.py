"""The solver for plain networks of linear layers, and the sums that it works from."""

from __future__ import annotations

import pytest
import torch

from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.fitting.context import Chunk, FitContext, FitModel
from mergenet_core.fitting.fit import fit
from mergenet_core.fitting.gram import Gram
from mergenet_core.models.builtin import MergeNetMlp, MergeNetMlpConfig
from mergenet_core.models.describe import model_info


def model(hidden: list[int], seed: int) -> MergeNetMlp:
    torch.manual_seed(seed)
    config = MergeNetMlpConfig(image_size=6, num_channels=1, hidden_sizes=hidden, num_labels=3)
    return MergeNetMlp(config).eval().requires_grad_(False)


def as_fit_model(module: MergeNetMlp) -> FitModel:
    info = model_info(module)
    return FitModel(module, read_structure(info.shapes, info.config)[0])


def context(source: MergeNetMlp, target: MergeNetMlp, columns: tuple[int, ...] | None = (0, 1, 2)) -> FitContext:
    images = torch.randn(400, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    chunks = [Chunk({"pixel_values": part}, {"pixel_values": part}) for part in images.split(64)]
    return FitContext(as_fit_model(source), as_fit_model(target), chunks, lambda X: X, seed=0, columns=columns)


def test_the_ridge_regression_from_sums_is_that_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    X, Y = torch.randn(50, 4, generator=generator).double(), torch.randn(50, 2, generator=generator).double()
    gram = Gram(4, 2)
    for part in (slice(0, 20), slice(20, 50)):
        gram.add(X[part], Y[part])
    found = gram.solve(0.1)
    centred = X - X.mean(0)
    S = centred.T @ centred / 50
    expected = torch.linalg.solve(S + 0.1 * S.diagonal().mean() * torch.eye(4), centred.T @ (Y - Y.mean(0)) / 50)
    torch.testing.assert_close(found.W_io, expected)
    left = (X @ expected + found.b_o - Y).square().mean(0).sum() / (Y - Y.mean(0)).square().mean(0).sum()
    assert found.error == pytest.approx(float(left))


def test_padding_does_not_count_in_the_sums() -> None:
    X, Y = torch.randn(9, 3), torch.randn(9, 2)
    whole, masked = Gram(3, 2), Gram(3, 2)
    whole.add(X[:6], Y[:6])
    masked.add(X, Y, torch.tensor([1.0] * 6 + [0.0] * 3))
    torch.testing.assert_close(masked.solve(1e-3).W_io, whole.solve(1e-3).W_io)


@pytest.mark.parametrize("hidden", [[12, 9], [20, 16]], ids=["as wide", "wider"])
def test_a_target_that_has_room_for_the_source_computes_what_it_computes(hidden: list[int]) -> None:
    source, target = model([12, 9], 1), model(hidden, 2)
    found = fitted = context(source, target)
    assert [one.name for one in fit(found)] == ["layers.0", "layers.1", "head"]
    pixels = fitted.chunks[0].source["pixel_values"]
    logits, wanted = target(pixels).logits, source(pixels).logits
    assert float((logits - wanted).square().mean() / wanted.var()) < 0.01


def test_a_narrower_and_deeper_target_comes_nearer_to_the_source_than_a_shuffled_source_brings_it() -> None:
    source, other = model([24, 20], 1), model([24, 20], 5)
    pixels = context(source, source).chunks[0].source["pixel_values"]
    wanted = source(pixels).logits
    distance = {}
    for name, teacher in (("source", source), ("other", other)):
        target = model([16, 14, 12], 2)
        list(fit(context(teacher, target)))
        distance[name] = float((target(pixels).logits - wanted).square().mean() / wanted.var())
    assert distance["source"] < 0.3
    assert distance["other"] > 1


def test_a_head_for_other_labels_stays_as_it_was() -> None:
    target = model([8, 6], 2)
    before = target.head.weight.clone()
    assert [one.name for one in fit(context(model([12, 9], 1), target, columns=None))] == ["layers.0", "layers.1"]
    assert torch.equal(target.head.weight, before)


def test_what_is_fitted_already_is_not_solved_again() -> None:
    source, whole, parts = model([12, 9], 1), model([8, 6], 2), model([8, 6], 2)
    list(fit(context(source, whole)))
    steps = fit(context(source, parts))
    next(steps)
    assert [one.name for one in fit(context(source, parts), 1)] == ["layers.1", "head"]
    assert all(torch.equal(W, whole.state_dict()[name]) for name, W in parts.state_dict().items())
