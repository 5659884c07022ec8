"""The closed form of a fit between CNNs."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.fitting.cnn.layers import solve_depthwise, solve_layers
from mergenet_core.fitting.cnn.match import match_parts
from mergenet_core.fitting.cnn.parts import evaluating, observe, parts_of
from mergenet_core.fitting.context import Chunk, FitContext, FitModel, Solved
from mergenet_core.fitting.fit import fit
from mergenet_core.models import (
    MergeNetCnn,
    MergeNetCnnConfig,
    MergeNetMobileNetV2,
    MergeNetMobileNetV2Config,
    MergeNetResNet,
    MergeNetResNetConfig,
)
from mergenet_core.transfer.sham import shuffled

LABELS = 3


def resnet(seed: int = 0, sizes: tuple[int, ...] = (8, 12), kind: str = "basic", depth: int = 1) -> nn.Module:
    config = MergeNetResNetConfig(
        num_channels=1, embedding_size=6, hidden_sizes=list(sizes), depths=[depth] * len(sizes), layer_type=kind,
        num_labels=LABELS,
    )  # fmt: skip
    return seeded(MergeNetResNet, config, seed)


def mobilenet(seed: int = 0, width: float = 0.1, **settings: object) -> nn.Module:
    config = MergeNetMobileNetV2Config(
        num_channels=1, depth_multiplier=width, finegrained_output=False, expand_ratio=2.0, num_labels=LABELS,
        depth_divisible_by=4, min_depth=4, **settings,
    )  # fmt: skip
    return seeded(MergeNetMobileNetV2, config, seed)


def cnn(seed: int = 0, channels: tuple[int, ...] = (6, 8)) -> nn.Module:
    return seeded(MergeNetCnn, MergeNetCnnConfig(num_channels=1, channels=list(channels), num_labels=LABELS), seed)


def seeded(model: type[nn.Module], config: object, seed: int) -> nn.Module:
    """A model whose norms have met data and whose weights are large enough to pass a signal."""
    torch.manual_seed(seed)
    built = model(config)
    for module in built.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.3, 0.3)
    built.train()
    with torch.no_grad():
        built(pixel_values=images(64))
    return built.eval()


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """Smooth pictures. Shapes: (n, 1, h, w)."""
    noise = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, (size, size), mode="bicubic")


def as_fit_model(model: nn.Module) -> FitModel:
    shapes = {name: tuple(W.shape) for name, W in model.state_dict().items()}
    (structure,) = read_structure(shapes, model.config.to_dict())  # type: ignore[union-attr, operator]
    return FitModel(model, structure)


def context(
    source: nn.Module, target: nn.Module, count: int = 240, chunk: int = 120, labels: bool = True
) -> FitContext:
    chunks = [Chunk({"pixel_values": X}, {"pixel_values": X}) for X in images(count).split(chunk)]
    columns = tuple(range(LABELS)) if labels else None
    return FitContext(as_fit_model(source), as_fit_model(target), chunks, lambda sums: sums, seed=0, columns=columns)


def fitted(source: nn.Module, target: nn.Module) -> list[Solved]:
    return list(fit(context(source, target)))


def logits(model: nn.Module) -> Tensor:
    """Of images that no fit has seen."""
    with torch.no_grad():
        found: Tensor = model.eval()(pixel_values=images(64, seed=9)).logits
    return found


def explained(source: nn.Module, target: nn.Module) -> float:
    """The share of the source's logits' variance that the target's give."""
    wanted = logits(source)
    return 1 - float((logits(target) - wanted).var(0).sum() / wanted.var(0).sum())


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_solved_layer_gives_what_least_squares_says(training):
    model = cnn()
    layer = parts_of(as_fit_model(model))[0].last
    X = images(32)
    wanted = torch.randn(32, 6, 8, 8, generator=torch.Generator().manual_seed(1)) + 5 * X + 2
    with torch.no_grad(), evaluating(model):
        part = parts_of(as_fit_model(model))[0]
        solve_layers(context(model, model), [layer], [(observe(part, X), wanted)])
    read = nn.functional.unfold(X, 3, padding=1).movedim(1, -1).reshape(-1, 9)
    read = torch.cat([read, torch.ones(len(read), 1)], dim=1)
    Y = wanted.movedim(1, -1).reshape(-1, 6)
    expected = read @ torch.linalg.lstsq(read, Y).solution
    layer.norm.train(training)
    with torch.no_grad():
        given = layer.norm(layer.convolution(X)).movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(given, expected, rtol=0.05, atol=1.5)


def test_a_solved_depthwise_layer_gives_what_least_squares_says_of_each_channel():
    model = mobilenet()
    part = parts_of(as_fit_model(model))[1]
    layer = part.hidden[1]
    x = torch.randn(16, layer.width, 8, 8, generator=torch.Generator().manual_seed(1))
    kernel = torch.randn(layer.width, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    wanted = nn.functional.conv2d(x, kernel, padding=1, groups=layer.width, stride=layer.convolution.stride) + 1
    with torch.no_grad(), evaluating(model):
        seen = observe(part, torch.randn(16, part.hidden[0].convolution.in_channels, 8, 8))
        seen.inputs[layer.role] = x
        solve_depthwise(context(model, model), layer, [(seen, wanted)])
        given = layer.norm(layer.convolution(x))
    torch.testing.assert_close(given, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "build",
    [resnet, lambda seed: resnet(seed, depth=2), lambda seed: resnet(seed, kind="bottleneck"), mobilenet, cnn],
    ids=["resnet", "deeper resnet", "bottlenecks", "mobilenet", "cnn"],
)
def test_a_target_built_like_the_source_reproduces_it(build):
    source, target = build(seed=1), build(seed=2)
    assert explained(source, target) < 0.5
    fitted(source, target)
    assert explained(source, target) > 0.8


@functools.cache
def taught_mobilenet() -> nn.Module:
    """With weights at random it would be deep noise."""
    target = mobilenet(3, 0.25)
    fitted(resnet(1), target)
    return target.eval()


PAIRS = {
    "resnet to mobilenet": (lambda: resnet(1, (16, 24)), lambda: mobilenet(2, 0.25)),
    "resnet to narrower resnet": (lambda: resnet(1, (16, 24)), lambda: resnet(2)),
    "resnet to bottlenecks": (lambda: resnet(1, (16, 24)), lambda: resnet(2, (24, 32), "bottleneck")),
    "resnet to cnn": (lambda: resnet(1), lambda: cnn(2, (12, 16))),
    "cnn to resnet": (lambda: cnn(1), lambda: resnet(2)),
    "cnn to mobilenet": (lambda: cnn(1), lambda: mobilenet(2, 0.25)),
    "cnn to deeper, wider cnn": (lambda: cnn(1), lambda: cnn(2, (8, 12, 16))),
    "mobilenet to resnet": (taught_mobilenet, lambda: resnet(2)),
    "mobilenet to cnn": (taught_mobilenet, lambda: cnn(2, (12, 16))),
    "mobilenet to narrower mobilenet": (taught_mobilenet, lambda: mobilenet(2)),
    "padding outside, expanded stem": (
        lambda: resnet(1, (16, 24)),
        lambda: mobilenet(2, 0.25, tf_padding=True, first_layer_is_expansion=False),
    ),
}


SLOW = ("cnn to mobilenet", "mobilenet to resnet", "mobilenet to cnn", "padding outside, expanded stem")


@pytest.mark.parametrize(
    "pair", [pytest.param(PAIRS[name], id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PAIRS]
)
def test_every_pair_of_families_carries_the_source_and_not_its_sham(pair):
    source, target = (build() for build in pair)
    names = [solved.name for solved in fitted(source, target)]
    assert names[-1].startswith(("classifier", "head"))
    assert explained(source, target) > 0.3
    sham, target = copy.deepcopy(source), pair[1]()
    sham.load_state_dict({name: shuffled(W, name, 0) for name, W in source.state_dict().items()})
    fitted(sham, target)
    assert explained(source, target) < 0.2


def test_processes_with_parts_of_the_images_write_what_one_process_writes():
    source, alone, together = resnet(1, (16, 24)), mobilenet(2), mobilenet(2)
    list(fit(context(source, alone, chunk=120)))
    list(fit(context(source, together, chunk=80)))
    for name, W in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], W, rtol=1e-4, atol=1e-5, msg=name)


def test_a_resumed_fit_writes_what_an_uninterrupted_one_writes():
    source, whole = resnet(1), mobilenet(2)
    parts, states = [], [copy.deepcopy(whole.state_dict())]
    for solved in fit(context(source, whole)):
        parts.append(solved.name)
        states.append(copy.deepcopy(whole.state_dict()))
    for start in (3, 18):
        resumed = mobilenet(2)
        resumed.load_state_dict(states[start])
        assert [solved.name for solved in fit(context(source, resumed), start)] == parts[start:]
        assert all(torch.equal(W, states[-1][name]) for name, W in resumed.state_dict().items())


@pytest.mark.parametrize(
    "build", [mobilenet, lambda seed: resnet(seed, depth=2), cnn], ids=["mobilenet", "resnet", "cnn"]
)
def test_a_source_whose_units_are_dead_leaves_finite_weights(build):
    source, target = resnet(1), build(2)
    with torch.no_grad():
        for name, W in source.named_parameters():
            if name.endswith("normalization.bias"):
                W.fill_(-100)
    fitted(source, target)
    assert all(bool(W.isfinite().all()) for W in target.state_dict().values())
    assert all(float(W.abs().max()) < 1e6 for W in target.state_dict().values())


def test_without_shared_labels_the_head_stays_and_modes_and_source_are_as_they_were():
    source, target = cnn(1), resnet(2)
    target.train()
    before, head = copy.deepcopy(source.state_dict()), target.get_submodule("classifier.1.weight".rpartition(".")[0])
    kept = copy.deepcopy(head.state_dict())
    list(fit(context(source, target, labels=False)))
    assert target.training
    assert not source.training
    assert all(torch.equal(W, kept[name]) for name, W in head.state_dict().items())
    assert all(torch.equal(W, before[name]) for name, W in source.state_dict().items())


@pytest.mark.parametrize(
    "pair", [PAIRS["resnet to mobilenet"], PAIRS["resnet to cnn"], PAIRS["cnn to deeper, wider cnn"]]
)
def test_a_part_ends_at_a_boundary_whose_map_gives_its_activations(pair):
    source, target = (build() for build in pair)
    parts = fitted(source, target)
    kept: dict[str, Tensor] = {}
    for side, model in (("source", source), ("target", target)):
        for name, module in model.named_modules():
            module.register_forward_hook(lambda _, __, given, at=f"{side} {name}": kept.__setitem__(at, given))
    with torch.no_grad():
        for model in (source, target):
            model.eval()(pixel_values=images(240))
    for solved in parts[:-1]:
        boundary = solved.boundary
        assert boundary is not None
        given, h = kept[f"target {boundary.target}"], kept[f"source {boundary.source}"]
        h = nn.functional.adaptive_avg_pool2d(h, given.shape[-2:])
        z = torch.einsum("bshw,st->bthw", h - boundary.mean_s[:, None, None], boundary.map_st)
        z = z + boundary.offset_t[:, None, None]
        wanted = boundary.map_st.any(dim=0)
        left = (given - z)[:, wanted].square().mean()
        spread = (z - z.mean(dim=(0, 2, 3), keepdim=True))[:, wanted].square().mean()
        assert left / spread < solved.error + 0.1


def test_parts_are_matched_by_size_and_depth_and_the_last_ones_always():
    assert match_parts([0, 0, 1, 2], [0, 0, 1, 2]) == [0, 1, 2, 3]
    assert match_parts([0, 0, 1, 1.81], [0, 0, 0, 1, 1, 2, 2, 2.8, 2.8]) == [0, 0, 1, 2, 2, 3, 3, 3, 3]
    assert match_parts([0, 1, 2, 3], [0, 0]) == [0, 3]
    spread = match_parts([1, 1, 2, 3, 4, 5], [0, 0, 0.5, 1])
    assert spread == sorted(spread)
    assert spread[-1] == 5
