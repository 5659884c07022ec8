"""ResNet-50 into MobileNetV2, whose blocks differ: which weights are paired, and how the pair trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.models.describe import model_info
from mergenet_core.models.loading import build
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.job import JobSpec, MethodName, TransferSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.training.export import export_model
from tests.training.tiny import image_job, prepared, run

RESNET = {
    "model_type": "mergenet-resnet",
    "num_channels": 3,
    "embedding_size": 8,
    "hidden_sizes": [16, 32],
    "depths": [2, 1],
}
MOBILENET = {"model_type": "mergenet-mobilenet-v2", "num_channels": 3, "depth_multiplier": 0.125}
BLOCK = "mobilenet_v2.layer.{}.{}_1x1.convolution.weight"
BOTTLENECK = "resnet.encoder.stages.{}.layers.{}.layer.{}.convolution.weight"


def full(method: MethodName) -> Pairing:
    """The pair of the paper, each at its own size."""
    labels = tuple(str(label) for label in range(100))
    source, target = (
        ModelInfo(config, shapes_from_config(config, "image-classification") or {}, None, labels)
        for config in ({"model_type": kind, "num_labels": 100} for kind in ("mergenet-resnet", "mergenet-mobilenet-v2"))
    )
    return pair(source, target, TransferSpec(method=method))


def of(config: dict[str, object]) -> ModelInfo:
    """A model from scratch as pairing knows it."""
    labels = ("a", "b")
    return model_info(
        build(config, "image-classification", labels, seed=0, overrides={}), vocabulary=None, labels=labels
    )


def narrow(method: MethodName) -> JobSpec:
    return image_job(
        MOBILENET,
        source__model={"config": RESNET},
        transfer={"method": method, "cycle": 2, "stop_at": 1.0, "width": 8, "heads": 2, "allow_unanchored": True},
        arms=["transfer", "control", "sham"],
    )


def test_lpka_pairs_the_blocks_of_both_models_in_order() -> None:
    pairing = full("lpka")
    sources = {entry.target: entry.source for entry in pairing.pairs}
    blocks = [
        (block, stage, layer)
        for block in range(16)
        for stage, depth in enumerate((3, 4, 6, 3))
        for layer in range(depth)
        if sources.get(BLOCK.format(block, "expand")) == BOTTLENECK.format(stage, layer, 0)
    ]
    # the target's stages have 2, 3, 4, 3, 3 and 1 blocks: the first two go with the source's first, and so on
    assert blocks == [
        (0, 0, 0), (2, 0, 1), (4, 0, 2),
        (5, 1, 0), (6, 1, 1), (7, 1, 2), (8, 1, 3),
        (9, 2, 0), (10, 2, 1), (11, 2, 2), (12, 2, 3), (13, 2, 4), (14, 2, 5),
        (15, 3, 0),
    ]  # fmt: skip
    for block, stage, layer in blocks:
        assert sources[BLOCK.format(block, "reduce")] == BOTTLENECK.format(stage, layer, 2)
    assert sources["classifier.weight"] == "classifier.1.weight"
    assert (
        sources["mobilenet_v2.conv_stem.first_conv.convolution.weight"] == "resnet.embedder.embedder.convolution.weight"
    )
    assert (
        pairing.unpaired["mobilenet_v2.layer.1.expand_1x1.convolution.weight"] == "the source's stage has fewer blocks"
    )
    assert (
        pairing.unpaired["mobilenet_v2.layer.0.conv_3x3.convolution.weight"] == "the source has no weight of this role"
    )


@pytest.mark.parametrize("method", ["auto", "project", "anchored"])
def test_methods_that_carry_maps_pair_only_the_stem_and_the_labels(method: MethodName) -> None:
    pairing = full(method)
    assert {entry.role.split(".")[0] for entry in pairing.pairs} == {"stem", "head"}
    assert pairing.transferable_parameters == 32 * 3 * 9 + 2 * 32 + 100
    assert pairing.unpaired[BLOCK.format(0, "expand")] == "no map arrives on its input axis stage.0"


def test_a_stem_with_another_kernel_is_named_as_the_cause_without_its_consequences() -> None:
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
    source, target = (of(settings) for settings in (config, MOBILENET))
    for method in ("auto", "project", "anchored"):
        with pytest.raises(PairingRefused) as caught:
            pair(source, target, TransferSpec(method=method))
        assert "kernel 3×3 here, 7×7 in the source" in caught.value.message
        assert "no map arrives" not in caught.value.message
        assert "or take transfer.method: lpka, which needs none" in caught.value.message
    by_attention = pair(source, target, TransferSpec(method="lpka"))
    assert "stem.conv" in {entry.role for entry in by_attention.pairs}


def test_anchored_does_not_pair_weights_that_only_read_an_unanchored_axis() -> None:
    source, target = of(RESNET), of(MOBILENET)
    pairing = pair(source, target, TransferSpec(method="anchored", allow_unanchored=True))
    assert pairing.unpaired["classifier.weight"].startswith("anchored makes a map where an axis is written, and last")
    by_size = pair(source, target, TransferSpec(method="project", allow_unanchored=True))
    assert "classifier.weight" in {entry.target for entry in by_size.pairs}


@pytest.mark.parametrize("method", ["project", "anchored", "lpka", "lpka-raw"])
def test_a_narrow_pair_trains_and_the_exported_model_computes_the_same_logits(
    method: MethodName, tmp_path: Path, roots: Roots
) -> None:
    job = narrow(method)
    assert make_plan(job, roots, tmp_path, []).pairing is not None
    run(job, "source", tmp_path, roots)
    losses = {}
    for arm in ("transfer", "sham", "control"):
        training = prepared(job, f"{arm}-0", tmp_path, roots)
        assert (training.transfer is None) == (arm == "control")
        training.start()
        model = training.engine.module
        for _ in range(4):
            before = {name: value.clone() for name, value in model.named_buffers()}
            training.advance()
            assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        moved = [name for name, value in model.named_buffers() if not torch.equal(value, before[name])]
        assert len(moved) == len(before), "the statistics of every BatchNorm change at every step"
        losses[arm] = training.loss
        about = {"step": training.step, "seed": 0, "trial": arm}
        export_model(training.engine, training.task.processor, tmp_path / arm, attempt=1, about=about)
        again = AutoModelForImageClassification.from_pretrained(tmp_path / arm).eval()
        pixels = training.task.test.batch(torch.arange(8))["pixel_values"]
        with torch.no_grad():
            torch.testing.assert_close(again(pixels).logits, model.eval()(pixels).logits, atol=1e-5, rtol=1e-4)
    assert len(set(losses.values())) == 3
