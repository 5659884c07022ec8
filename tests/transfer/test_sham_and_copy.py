import torch

from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.methods.copy import copy_largest
from mergenet_core.transfer.sham import ShuffledWeights
from tests.transfer.tiny import applied, cnn, context, mlp


def test_a_sham_keeps_every_weight_s_distribution_and_loses_its_order():
    weights = cnn().state_dict()
    sham = ShuffledWeights(weights, 0)
    assert sham.keys() == weights.keys()
    for name, W in weights.items():
        assert sham[name].shape == W.shape
        assert torch.equal(sham[name].flatten().sort().values, W.flatten().sort().values)
        assert W.numel() < 6 or not torch.equal(sham[name], W)


def test_a_sham_depends_on_its_seed_alone():
    weights = mlp().state_dict()
    again, other = ShuffledWeights(dict(reversed(weights.items())), 5), ShuffledWeights(weights, 6)
    first = ShuffledWeights(weights, 5)
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
