"""Recall between images and captions against values worked out by hand, and against a plain reference."""

from __future__ import annotations

import pytest
import torch

from mergenet_core.tasks.image_text_retrieval import scores
from mergenet_core.tasks.image_text_retrieval.scores import image_terms, recalls


def test_two_captions_an_image_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    captions = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    image_m = torch.tensor([0, 0, 1, 1])
    found = recalls(images, captions, image_m)
    # image 0 finds caption 0 (0.9); the nearest to image 1 is caption 1 (0.8), which belongs to image 0, then caption 2
    assert found["image_to_text_r1"] == pytest.approx(1 / 2, abs=1e-6)
    assert found["image_to_text_r5"] == 1.0
    # captions 0 and 2 find theirs, 1 and 3 find the other one's
    assert found["text_to_image_r1"] == pytest.approx(2 / 4, abs=1e-6)
    assert found["text_to_image_r10"] == 1.0
    assert found["mean_recall"] == pytest.approx((0.5 + 1 + 1 + 0.5 + 1 + 1) / 6, abs=1e-6)
    # image 0: all ranks, captions 0 and 1 with 3 and 2 of 3; image 1: 2 of 3, captions 2 and 3 with 3 and 2 of 3
    terms = image_terms(images, captions, image_m)
    assert terms.tolist() == pytest.approx([(1 + 5 / 6) / 2, (2 / 3 + 5 / 6) / 2], abs=1e-6)


def test_blocks_give_what_a_sorted_matrix_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(1, 6, (40,), generator=generator)
    image_m = torch.arange(40).repeat_interleave(counts)
    images = torch.randn(40, 8, generator=generator)
    captions = images[image_m] + 1.5 * torch.randn(len(image_m), 8, generator=generator)
    monkeypatch.setattr(scores, "BLOCK", 7)
    found = recalls(images, captions, image_m)
    near = (images @ captions.T).argsort(dim=1, descending=True)
    back = (captions @ images.T).argsort(dim=1, descending=True)
    terms = image_terms(images, captions, image_m)
    assert float(terms.mean()) == pytest.approx(found["mean_recall"], abs=1e-6)
    for rank in (1, 5, 10):
        to_text = (image_m[near[:, :rank]] == torch.arange(40)[:, None]).any(dim=1).double().mean()
        to_image = (back[:, :rank] == image_m[:, None]).any(dim=1).double().mean()
        assert found[f"image_to_text_r{rank}"] == pytest.approx(float(to_text), abs=1e-6)
        assert found[f"text_to_image_r{rank}"] == pytest.approx(float(to_image), abs=1e-6)
    assert 0 < found["image_to_text_r1"] < found["image_to_text_r5"] < 1


def test_a_model_with_equal_scores_for_all_finds_nothing() -> None:
    found = recalls(torch.ones(20, 4), torch.ones(40, 4), torch.arange(20).repeat_interleave(2))
    assert set(found.values()) == {0.0}
