import numpy
import pytest
import torch

from mergenet_core.transfer.reencode import factorize, refactorize
from mergenet_core.transfer.views import view_of


def decaying(m, n, seed=0):
    """A matrix whose singular values halve, as a trained weight's fall, so that the truncation is unique."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(m, min(m, n), generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, min(m, n), generator=generator, dtype=torch.float64)).Q
    return U @ torch.diag(2.0 ** -torch.arange(min(m, n), dtype=torch.float64)) @ V.T


@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (13, 5), (5, 13)])
@pytest.mark.parametrize("rank", [1, 4, 5])
def test_the_re_encoding_is_the_truncated_svd(shape, rank):
    W = decaying(*shape)
    B, A = factorize(view_of(W), rank)
    U, S, V = numpy.linalg.svd(W.numpy())
    best = (U[:, :rank] * S[:rank]) @ V[:rank]
    numpy.testing.assert_allclose((B @ A).numpy(), best, atol=1e-6)


@pytest.mark.parametrize("rank", [3, 5])
def test_after_a_small_change_one_iteration_from_the_earlier_factors_is_as_good(rank):
    before = [decaying(40, 30), decaying(5, 13), decaying(13, 5)]
    after = [W + 1e-3 * decaying(*W.shape, seed=1) for W in before]
    near = [factorize(view_of(W), rank)[1] for W in before]
    for W, (B, A) in zip(after, refactorize([view_of(W) for W in after], near), strict=True):
        best_B, best_A = factorize(view_of(W), rank)
        torch.testing.assert_close(B @ A, best_B @ best_A, atol=2e-4, rtol=0)
        assert A.shape == best_A.shape


def test_the_factors_are_balanced_and_their_signs_fixed():
    B, A = factorize(view_of(decaying(20, 12)), 4)
    torch.testing.assert_close(B.T @ B, A @ A.T)
    torch.testing.assert_close(B.T @ B, torch.diag(2.0 ** -torch.arange(4, dtype=torch.float64)), atol=1e-6, rtol=0)
    assert (B.gather(0, B.abs().argmax(0, keepdim=True)) > 0).all()


def test_at_full_rank_nothing_is_lost():
    for shape, form in [((6, 4, 3, 3), "convolution"), ((50, 8), "embedding"), ((3, 11), "matrix")]:
        W = torch.randn(shape)
        view = view_of(W, form)
        B, A = factorize(view, min(view.shape))
        torch.testing.assert_close(B @ A, W.reshape(view.shape), atol=1e-5, rtol=1e-5)


def test_the_same_weight_has_the_same_factors_under_any_global_seed():
    W = torch.randn(60, 50)
    torch.manual_seed(1)
    first = factorize(view_of(W), 6)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    second = factorize(view_of(W), 6)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(1)
    factorize(view_of(W), 6)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_weight_of_zeros_has_finite_factors():
    B, A = factorize(view_of(torch.zeros(4, 6)), 2)
    assert torch.isfinite(B).all()
    assert (B @ A).abs().max() == 0
