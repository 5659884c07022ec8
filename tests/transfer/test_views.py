import itertools

import pytest
import torch

from mergenet_core.transfer.shards import FlatSlice
from mergenet_core.transfer.shards.tensor_shard import load_at_once_
from mergenet_core.transfer.views import WeightView, view_of


class RangeShard:
    """A range of a weight's entries on one of several processes, without the others: sums stay partial."""

    is_whole = False

    def __init__(self, parameter, start, stop):
        self.parameter = parameter
        self.shape = tuple(parameter.shape)
        self.device = parameter.device
        self.start, self.stop = start, stop
        self.copy = parameter.detach().clone()

    def local(self):
        return FlatSlice(self.start, self.parameter.detach().view(-1)[self.start : self.stop])

    def write_(self, flat):
        self.parameter.detach().view(-1)[self.start : self.stop] = flat

    def copies(self):
        return [FlatSlice(0, self.copy.view(-1))]

    def load_(self, read):
        load_at_once_(self, read)

    def gradient(self):
        return self.parameter.grad.view(-1)[self.start : self.stop]

    def write_gradient_(self, flat):
        self.parameter.grad.view(-1)[self.start : self.stop] = flat

    def sum_(self, X):
        return X


SHAPES = pytest.mark.parametrize(
    ("shape", "form", "matrix"),
    [((5, 3), "matrix", (5, 3)), ((4, 3, 3, 2), "convolution", (4, 18)), ((7, 3), "embedding", (7, 3)),
     ((6,), "vector", (6, 1)), ((1, 4, 3), "embedding", (4, 3))],
)  # fmt: skip
CUTS = pytest.mark.parametrize("cuts", [(), (0.5,), (0.1, 0.15, 0.9), (0.0, 0.7)], ids=str)


def parameter(shape):
    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    weight.grad = torch.randn_like(weight)
    return weight


def range_views(weight, form, cuts):
    """Views of processes that hold a weight in consecutive ranges, some empty or ending within a row."""
    ends = [0, *(int(cut * weight.numel()) for cut in cuts), weight.numel()]
    return [WeightView(RangeShard(weight, a, b), form) for a, b in itertools.pairwise(ends)]


@SHAPES
@CUTS
def test_products_are_those_of_the_weight_as_a_matrix(shape, form, matrix, cuts):
    weight = parameter(shape)
    W, G = weight.detach().reshape(matrix).clone(), weight.grad.reshape(matrix).clone()
    X, Y = torch.randn(matrix[1], 2, dtype=torch.float64), torch.randn(matrix[0], 2, dtype=torch.float64)
    views = range_views(weight, form, cuts)
    expected = {
        "left": W @ X, "right": Y.T @ W, "grad_left": G @ X, "grad_right": Y.T @ G,
    }  # fmt: skip
    for name, result in expected.items():
        given = X if name.endswith("left") else Y
        torch.testing.assert_close(sum(getattr(view, name)(given) for view in views), result)
    torch.testing.assert_close(sum(view.squares() for view in views), W.square().sum(1))
    torch.testing.assert_close(sum(view.grad_dots() for view in views), (W * G).sum(1))
    assert {view.shape for view in views} == {matrix}


@SHAPES
@CUTS
def test_changes_reach_every_entry_once_and_every_copy(shape, form, matrix, cuts):
    weight = parameter(shape)
    W, G = weight.detach().reshape(matrix).clone(), weight.grad.reshape(matrix).clone()
    a, s = torch.rand(matrix[0], dtype=torch.float64), torch.rand(matrix[0], dtype=torch.float64)
    B, A = torch.randn(matrix[0], 2, dtype=torch.float64), torch.randn(2, matrix[1], dtype=torch.float64)
    views = range_views(weight, form, cuts)
    for view in views:
        view.grad_combine_(a, s, B, A)
    torch.testing.assert_close(weight.grad.reshape(matrix), a[:, None] * G + s[:, None] * W + B @ A)
    for view in views:
        view.scale_add_(a, B, A)
    W = a[:, None] * W + B @ A
    rows, values = torch.tensor([2, 0]), torch.randn(2, matrix[1], dtype=torch.float64)
    for view in views:
        view.write_rows_(rows, values)
    W[rows] = values
    torch.testing.assert_close(weight.detach().reshape(matrix), W)
    for view in views:
        torch.testing.assert_close(view.shard.copy.reshape(matrix), W)


def test_a_weight_held_whole_needs_no_exchange():
    weight = parameter((4, 3))
    view, X = view_of(weight), torch.randn(3, 2, dtype=torch.float64)
    W = weight.detach().clone()
    torch.testing.assert_close(view.left(X), W @ X)
    view.add_(torch.ones(4, 1), torch.ones(1, 3))
    torch.testing.assert_close(weight.detach(), W + 1)


def test_a_weight_that_the_loss_does_not_reach_has_a_zero_gradient():
    view = view_of(torch.nn.Parameter(torch.ones(2, 3)))
    assert view.grad_left(torch.ones(3, 1)).tolist() == [[0.0], [0.0]]


def test_columns_are_written_into_a_whole_weight_and_into_a_range_of_one():
    W = torch.arange(12.0).view(4, 3).clone()
    view_of(W).write_columns_(torch.tensor([2, 0]), torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    assert W.tolist() == [[5, 1, 1], [6, 4, 2], [7, 7, 3], [8, 10, 4]]
    held = WeightView(
        RangeShard(torch.nn.Parameter(torch.zeros(4, 3)), 4, 9)
    )  # from within the second row into the third
    held.write_columns_(torch.tensor([1]), torch.tensor([[9.0, 8, 7, 6]]))
    assert held.shard.local().flat.tolist() == [8, 0, 0, 7, 0]
    held.write_columns_(torch.tensor([2, 0]), torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    assert held.shard.local().flat.tolist() == [8, 2, 7, 7, 3]
    assert held.shard.copies()[0].flat.view(4, 3).tolist() == [[5, 9, 1], [6, 8, 2], [7, 7, 3], [8, 6, 4]]
