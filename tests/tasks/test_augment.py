"""Training sees images shifted and mirrored by the seed, the step and the example alone; nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergenet_core.errors import SpecInvalid
from mergenet_core.models.processors import plain_image_processor
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.data.augment import PADDING, crop_flip
from mergenet_core.training.trial import Interrupted
from tests.tasks.cifar_files import write_cifar
from tests.tasks.examples import read_examples
from tests.training.tiny import CNN, Recorder, image_job, run, text_job, write_world


def test_each_image_is_a_cut_of_itself_padded_with_black() -> None:
    black_c = torch.tensor([0.5, -1.0])
    pixels = torch.randn(40, 2, 9, 7)
    seen = crop_flip(pixels, torch.arange(40), 40, 3, black_c)
    padded = black_c[:, None, None].repeat(40, 1, 9 + 2 * PADDING, 7 + 2 * PADDING)
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = pixels
    found = set()
    for image, whole in zip(seen, padded, strict=True):
        cuts = {
            (down, right, mirrored): whole[:, down : down + 9, right : right + 7].flip(2 if mirrored else ())
            for down in range(2 * PADDING + 1)
            for right in range(2 * PADDING + 1)
            for mirrored in (False, True)
        }
        (cut,) = [offset for offset, wanted in cuts.items() if torch.allclose(image, wanted, atol=1e-6)]
        found.add(cut)
    assert len(found) > 20
    assert {mirrored for _, _, mirrored in found} == {False, True}


def test_an_image_is_seen_alike_in_any_batch_and_otherwise_at_another_step() -> None:
    pixels = torch.rand(10, 3, 8, 8)
    index_b = torch.tensor([7, 2, 5])
    together = crop_flip(pixels[index_b], index_b, 10, 4, torch.zeros(3))
    alone = crop_flip(pixels[[2]], torch.tensor([2]), 10, 4, torch.zeros(3))
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(crop_flip(pixels[index_b], index_b, 10, 5, torch.zeros(3)), together)


def test_the_splits_that_are_measured_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("train.bin", "test.bin"):
        write_cifar(tmp_path / name, 30, 1)

    def load(**data: Any) -> Any:
        spec = DataSpec(train="train.bin", test="test.bin", **data)
        processor = plain_image_processor(32, [0.3] * 3, [0.2] * 3)
        return read_examples("image-classification", spec, Roots((), (tmp_path,)), images=processor)

    plain, varied, index_b = load(), load(augment="crop-flip"), torch.arange(4)
    for split in ("train", "validation", "test"):
        pixels = getattr(varied, split).batch(index_b)["pixel_values"]
        assert torch.equal(pixels, getattr(plain, split).batch(index_b)["pixel_values"])
    seen = varied.train.augmented_batch(index_b, 1)
    assert torch.equal(seen["labels"], plain.train.batch(index_b)["labels"])
    assert torch.equal(
        plain.train.augmented_batch(index_b, 1)["pixel_values"], plain.train.batch(index_b)["pixel_values"]
    )
    assert not torch.equal(seen["pixel_values"], plain.train.batch(index_b)["pixel_values"])
    black = (0 - 0.3) / 0.2
    assert float(seen["pixel_values"].min()) == pytest.approx(black, abs=1e-5)


def test_a_resumed_run_sees_the_same_images_bit_for_bit(tmp_path: Path) -> None:
    roots = write_world(tmp_path)
    job = image_job(CNN, target__data__augment="crop-flip", transfer__method="anchored", transfer__cycle=2)
    once, parts = Recorder(), Recorder()
    for folder in ("whole", "parts"):
        run(job, "source", tmp_path / folder, roots)
    run(job, "transfer-0", tmp_path / "whole", roots, once)
    with pytest.raises(Interrupted):
        run(job, "transfer-0", tmp_path / "parts", roots, Recorder({3: "stop"}))
    run(job, "transfer-0", tmp_path / "parts", roots, parts, attempt=2)
    assert set(parts.losses) == {4, 5, 6}
    assert parts.losses == {step: once.losses[step] for step in parts.losses}
    plain = Recorder()
    run(image_job(CNN), "control-0", tmp_path / "plain", roots, plain)
    varied = Recorder()
    run(job, "control-0", tmp_path / "whole", roots, varied)
    assert varied.losses[1] != plain.losses[1]


def test_with_a_teacher_and_on_texts_it_is_refused() -> None:
    arms = ["transfer", "control", "distill"]
    with pytest.raises(SpecInvalid, match=r"augment crop-flip changes images at every step.*leave distill out"):
        image_job(CNN, target__data__augment="crop-flip", arms=arms)
    assert image_job(CNN, source__data__augment="crop-flip", arms=arms).source.data is not None
    with pytest.raises(SpecInvalid, match="augment crop-flip is for image-classification, not for text-classification"):
        text_job(target__data__augment="crop-flip")
