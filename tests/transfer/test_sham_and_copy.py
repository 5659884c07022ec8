import pytest
import torch

from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.methods.copy import copy_largest
from mergenet_core.transfer.reencode import factorize
from mergenet_core.transfer.sham import Sham, ShamWeights
from mergenet_core.transfer.views import view_of
from tests.transfer.tiny import applied, cnn, context, mlp


def test_a_sham_keeps_every_weight_s_distribution_and_loses_its_order():
    weights = cnn().state_dict()
    sham = ShamWeights(weights, Sham("shuffled", 0))
    assert sham.keys() == weights.keys()
    for name, W in weights.items():
        assert sham[name].shape == W.shape
        assert torch.equal(sham[name].flatten().sort().values, W.flatten().sort().values)
        assert W.numel() < 6 or not torch.equal(sham[name], W)


def singular_values(W):
    return torch.linalg.svdvals(W.reshape(len(W), -1).double())


def test_a_spectrum_sham_keeps_singular_values_and_no_singular_vector():
    torch.manual_seed(0)
    weights = cnn().state_dict() | {"embeddings": torch.randn(200, 30), "flat": torch.randn(6, 400)}
    sham = ShamWeights(weights, Sham("spectrum", 0))
    first, other = (torch.linalg.svd(each["embeddings"].double(), full_matrices=False).U for each in (weights, sham))
    assert (first.T @ other).abs().max() < 0.5, "no left vector is kept"
    for name, W in weights.items():
        assert sham[name].shape == W.shape
        assert sham[name].dtype == W.dtype
        if W.ndim >= 2:
            assert torch.allclose(singular_values(sham[name]), singular_values(W), rtol=1e-4, atol=1e-6), name
        else:
            assert torch.equal(sham[name].flatten().sort().values, W.flatten().sort().values), "vectors are permuted"


def test_a_sham_of_factors_keeps_the_spectrum_of_their_product():
    torch.manual_seed(0)
    B, A = factorize(view_of(torch.randn(20, 12)), 5)
    found = Sham("spectrum", 3).factors(B, A, "w")
    assert [one.shape for one in found] == [B.shape, A.shape]
    assert torch.allclose(singular_values(found[0] @ found[1])[:5], singular_values(B @ A)[:5], rtol=1e-4)
    assert not torch.allclose(found[0] @ found[1], B @ A, atol=0.1)


@pytest.mark.parametrize("kind", ["shuffled", "spectrum"])
def test_a_sham_depends_on_its_seed_alone(kind):
    weights = mlp().state_dict()
    first, other = ShamWeights(weights, Sham(kind, 5)), ShamWeights(weights, Sham(kind, 6))
    again = ShamWeights(dict(reversed(weights.items())), Sham(kind, 5))
    assert all(torch.equal(first[name], again[name]) for name in weights)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_copy_takes_the_largest_rows_and_columns_and_leaves_vectors():
    source, target = mlp((9, 9)), mlp((5, 4), seed=1)
    written = applied(copy_largest(context(source, target, TransferSpec(method="project"))), target)
    W = source.state_dict()["layers.1.weight"]
    rows = sorted(W.norm(dim=1).argsort(descending=True)[:4].tolist())
    columns = sorted(W.norm(dim=0).argsort(descending=True)[:5].tolist())
    assert torch.equal(written["layers.1.weight"], W[rows][:, columns])
    assert "layers.1.bias" not in written
