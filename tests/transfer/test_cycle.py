import pytest
import torch
from torch import nn

from mergenet_core.spec.job import TransferSpec
from tests.transfer.tiny import batch, bert, cnn, mlp, transfer, vit

SMALL = {"cycle": 3, "stop_at": 1.0, "width": 8, "heads": 2}
LEARNED = pytest.mark.parametrize(
    "settings",
    [{"method": "anchored"}, {"method": "lpka"}, {"method": "lpka", "update": "hypernetwork"}, {"method": "project"}],
    ids=lambda settings: "-".join(settings.values()),
)
BUILDS = pytest.mark.parametrize("build", [bert, vit, mlp, cnn])


def step(model, optimizer, moving, at):
    model.train()
    moving.before(at)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(**batch(model, seed=at)).logits, torch.arange(8) % 3)
    loss.backward()
    moving.after_backward(at)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    moving.after_step(at)
    return float(loss.detach())


@LEARNED
@BUILDS
def test_a_resumed_run_continues_bit_for_bit(build, settings, tmp_path):
    spec = TransferSpec(**SMALL, **settings)
    source, target = build(seed=0), build(seed=1)
    moving, optimizer = transfer(source, target, spec, 12), torch.optim.AdamW(target.parameters(), lr=1e-2)
    moving.start()
    torch.manual_seed(0)
    for at in range(12):
        if at == 4:
            state = {"model": target.state_dict(), "optimizer": optimizer.state_dict(), "transfer": moving.state_dict()}
            torch.save(state | {"random": torch.get_rng_state()}, tmp_path / "state")
        loss = step(target, optimizer, moving, at)
    resumed = build(seed=1)
    saved = torch.load(tmp_path / "state", weights_only=True)
    again, other = transfer(source, resumed, spec, 12), torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["transfer"])
    torch.set_rng_state(saved["random"])
    for at in range(4, 12):
        last = step(resumed, other, again, at)
    assert last == loss
    assert all(torch.equal(W, resumed.state_dict()[name]) for name, W in target.state_dict().items())


def test_transfers_happen_every_cycle_until_the_stop_and_no_other_step_changes_a_weight():
    target = mlp(seed=1)
    moving = transfer(mlp(), target, TransferSpec(method="anchored", cycle=4, stop_at=0.5), 22)
    assert [at for at in range(22) if moving.transfers_at(at)] == [0, 4, 8]
    weights = {name: W.clone() for name, W in target.state_dict().items()}
    for at in (1, 12, 16, 21):
        moving.before(at)
        moving.after_backward(at)
        moving.after_step(at)
    assert all(torch.equal(W, weights[name]) for name, W in target.state_dict().items())


@LEARNED
@BUILDS
def test_the_target_stays_a_plain_module_and_the_global_random_numbers_untouched(build, settings):
    source, target = build(seed=0), build(seed=1)
    plain = build(seed=1)
    torch.manual_seed(4)
    random = torch.get_rng_state()
    moving = transfer(source, target, TransferSpec(**SMALL, **settings))
    moving.start()
    moving.before(0)
    assert torch.equal(torch.get_rng_state(), random)
    assert target.state_dict().keys() == plain.state_dict().keys()
    assert sum(W.numel() for W in target.parameters()) == sum(W.numel() for W in plain.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.modules())
    assert all(W.grad_fn is None and W.is_leaf for W in target.parameters())


@LEARNED
def test_the_source_is_not_changed(settings):
    source, target = bert(seed=0), bert(10, 1, heads=1, inner=7, seed=1)
    before = {name: W.clone() for name, W in source.state_dict().items()}
    moving, optimizer = (
        transfer(source, target, TransferSpec(**SMALL, **settings)),
        torch.optim.SGD(target.parameters(), 0.1),
    )
    moving.start()
    for at in range(4):
        step(target, optimizer, moving, at)
    assert all(torch.equal(W, before[name]) for name, W in source.state_dict().items())


def test_the_adapter_learns_and_is_counted():
    source, target = mlp(seed=0), mlp(seed=1)
    moving = transfer(source, target, TransferSpec(method="anchored", cycle=1))
    tensors = {name: W.clone() for name, W in moving.adapter_tensors().items()}
    optimizer = torch.optim.SGD(target.parameters(), 0.1)
    for at in range(3):
        step(target, optimizer, moving, at)
    changed = {name for name, W in moving.adapter_tensors().items() if not torch.equal(W, tensors[name])}
    assert changed == {name for name in tensors if not name.startswith("source.")}
    assert moving.parameters_count == sum(tensors[name].numel() for name in changed)
    assert transfer(source, target, TransferSpec(method="project")).parameters_count == 0
