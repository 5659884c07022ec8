"""Images become the pixels that the saved processor makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import load_image_processor, plain_image_processor
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from tests.tasks.examples import read_examples
from tests.training.tiny import write_images, write_lines


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    write_images(tmp_path / "train.parquet", 30, 1, size=12)
    write_images(tmp_path / "test.parquet", 10, 2, size=12)
    return Roots((tmp_path,), (tmp_path,))


def load(roots: Roots, processor: Any = None, channels: int = 1, **data: Any) -> Any:
    spec = DataSpec(**({"train": "train.parquet", "test": "test.parquet", "image_size": 6} | data))
    return read_examples("image-classification", spec, roots, images=processor, channels=channels)


def write_folder(folder: Path, mode: str = "RGB") -> list[Image.Image]:
    images = []
    for row in range(12):
        label_folder = folder / ("cat" if row % 2 else "dog")
        label_folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 255, (9, 7, 3)).astype("uint8")
        images.append(Image.fromarray(pixels).convert(mode))
        images[-1].save(label_folder / f"{row:02}.png")
    return images


@pytest.mark.parametrize("channels", [1, 3])
def test_the_saved_processor_makes_the_same_pixels(channels: int, roots: Roots, tmp_path: Path) -> None:
    mode = {1: "L", 3: "RGB"}[channels]
    images = write_folder(roots.data[0] / "animals", mode)
    task = load(roots, channels=channels, train="animals", test="animals")
    assert task.labels == ("cat", "dog")
    task.processor.save_pretrained(tmp_path / "processor")
    processor = load_image_processor(tmp_path / "processor")
    batch = task.test.batch(torch.tensor([0, 6]))  # read in the order of the folders: cats are 1, 3, …, dogs 0, 2, …
    expected = processor([images[1], images[0]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-5, rtol=0)
    assert batch["labels"].tolist() == [0, 1]


def test_pixels_are_normalised_by_the_whole_training_split(roots: Roots) -> None:
    task = load(roots, train_limit=5, validation="train.parquet")
    pixels = task.validation.batch(torch.arange(30))["pixel_values"]
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-2


def test_a_processor_is_used_at_the_size_that_was_asked_for(roots: Roots) -> None:
    task = load(roots, plain_image_processor(28, [0.5], [0.25]))
    assert (task.processor.size.height, task.processor.size.width) == (6, 6)
    assert task.processor.image_mean == (0.5,)
    assert task.test.batch(torch.tensor([0]))["pixel_values"].shape == (1, 1, 6, 6)
    assert len(load(roots, plain_image_processor(28, [0.5], [0.25]), channels=3).processor.image_mean) == 3


def test_paths_in_a_table_stay_in_its_folder(roots: Roots, tmp_path: Path) -> None:
    write_folder(roots.data[0] / "animals")
    rows = [{"image": f"animals/{('dog', 'cat')[row % 2]}/{row:02}.png", "label": row % 2} for row in range(12)]
    write_lines(roots.data[0] / "listed.jsonl", rows)
    assert len(load(roots, train="listed.jsonl", test="listed.jsonl").test) == 12
    for name in ("/etc/hostname", "../outside.png", "https://example.org/a.png", "animals/none.png"):
        write_lines(roots.data[0] / "bad.jsonl", [{"image": name, "label": 0}])
        with pytest.raises(DataRefused, match=r"row 0 names .* not a file below the table's folder"):
            load(roots, train="listed.jsonl", test="bad.jsonl")


def test_faults(roots: Roots) -> None:
    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_list([{"image": b"not an image", "label": 0}], features=features)
    table.to_parquet(roots.data[0] / "bad.parquet")
    with pytest.raises(DataRefused, match=r"target.data.test: row 0 is not an image that can be read"):
        load(roots, test="bad.parquet")
    write_lines(roots.data[0] / "none.jsonl", [{"image": None, "label": 0}])
    with pytest.raises(DataRefused, match=r"target.data.test: row 0 has no image"):
        load(roots, test="none.jsonl")
    (roots.data[0] / "void").mkdir()
    with pytest.raises(DataRefused, match="void holds neither tables"):
        load(roots, test="void")
    with pytest.raises(DataRefused, match="images have 1 or 3 channels"):
        load(roots, channels=4)
