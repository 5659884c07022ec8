import pytest
import torch

from mergenet_core.transfer.views import WeightView


@pytest.mark.parametrize(
    ("shape", "form", "matrix"),
    [((5, 3), "matrix", (5, 3)), ((4, 3, 3, 2), "convolution", (4, 18)), ((7, 3), "embedding", (7, 3))],
)
def test_products_are_those_of_the_weight_as_a_matrix(shape, form, matrix):
    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    weight.grad = torch.randn_like(weight)
    view = WeightView(weight, form)
    W, G = weight.detach().reshape(matrix).clone(), weight.grad.reshape(matrix)
    X, Y = torch.randn(matrix[1], 2, dtype=torch.float64), torch.randn(matrix[0], 2, dtype=torch.float64)
    assert view.shape == matrix
    torch.testing.assert_close(view.left(X), W @ X)
    torch.testing.assert_close(view.right(Y), Y.T @ W)
    torch.testing.assert_close(view.grad_left(X), G @ X)
    torch.testing.assert_close(view.grad_right(Y), Y.T @ G)
    view.add_(Y, X.T)
    torch.testing.assert_close(weight.detach().reshape(matrix), W + Y @ X.T)
    view.write_(W)
    torch.testing.assert_close(weight.detach().reshape(matrix), W)


def test_a_weight_that_the_loss_does_not_reach_has_a_zero_gradient():
    view = WeightView(torch.nn.Parameter(torch.ones(2, 3)))
    assert view.grad_left(torch.ones(3, 1)).tolist() == [[0.0], [0.0]]


def test_replacing_the_gradient_keeps_the_weight_s_shape():
    weight = torch.nn.Parameter(torch.ones(2, 3, 1, 1))
    WeightView(weight, "convolution").replace_gradient_(torch.arange(6.0).view(2, 3))
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape
    assert weight.grad.flatten().tolist() == [0, 1, 2, 3, 4, 5]
