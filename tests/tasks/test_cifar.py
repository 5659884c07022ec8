"""CIFAR-100's binary version: what is read of it, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import plain_image_processor
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from tests.tasks.examples import read_examples
from tests.training.tiny import image_job, run

ROWS = 40
RESNET = {"model_type": "mergenet-resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]}
MOBILENET = {"model_type": "mergenet-mobilenet-v2", "depth_multiplier": 0.1, "finegrained_output": False}


def write(folder: Path, split: str, seed: int, most: int = 99) -> np.ndarray:
    """Records with labels from 0 on, red brighter than green brighter than blue."""
    draw = np.random.default_rng(seed)
    records = draw.integers(0, 60, (ROWS, 3074), dtype=np.uint8)
    records[:, 0], records[:, 1] = np.arange(ROWS) % 20, np.arange(ROWS) % (most + 1)
    for plane, more in enumerate((150, 100, 50)):
        records[:, 2 + 1024 * plane : 2 + 1024 * (plane + 1)] += np.uint8(more)
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{split}.bin").write_bytes(records.tobytes())
    return records


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    for seed, split in enumerate(("train", "test")):
        write(tmp_path / "data" / "cifar", split, seed)
    return Roots((), (tmp_path / "data",))


def loaded(roots: Roots, **changes: object):
    data = DataSpec(train="cifar/train.bin", test="cifar/test.bin", image_size=32, **changes)
    return read_examples("image-classification", data, roots)


def test_pixels_and_fine_labels_are_those_of_the_records(roots: Roots, tmp_path: Path) -> None:
    records = write(tmp_path / "data" / "cifar", "test", 5)
    task = loaded(roots)
    batch = task.test.batch(torch.arange(ROWS))
    mean_c, std_c = torch.tensor(task.processor.image_mean), torch.tensor(task.processor.image_std)
    pixels = (batch["pixel_values"] * std_c[:, None, None] + mean_c[:, None, None]) * 255
    expected = torch.from_numpy(records[:, 2:].reshape(ROWS, 3, 32, 32).astype("float32"))
    torch.testing.assert_close(pixels, expected, atol=1e-2, rtol=0)
    assert [task.labels[row] for row in batch["labels"]] == [str(label) for label in records[:, 1]]
    assert len(task.labels) == 100


def test_labels_have_their_names_from_the_folder_and_coarse_ones_can_be_asked_for(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "data" / "cifar" / "fine_label_names.txt").write_text("\n".join(f"thing{n}" for n in range(100)))
    assert loaded(roots).labels[3] == "thing3"
    assert len(loaded(roots, label="coarse_label").labels) == 20


def test_a_label_beyond_the_names_is_refused(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "data" / "cifar" / "fine_label_names.txt").write_text("one\ntwo\n")
    with pytest.raises(DataRefused, match=r"record 39 of train\.bin has label 39, of 2 labels"):
        loaded(roots)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("train.bin", bytes(3074 * 3 + 5), "no multiple of a record's 3,074"),
        ("train", b"\x80\x04pickle", "may be a pickle and is not opened; CIFAR-100 has a binary version"),
        ("train.bin", b"", "is empty"),
    ],
)
def test_what_is_no_binary_version_is_refused_before_anything_is_queued(
    roots: Roots, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / "data" / "cifar" / name).write_bytes(content)
    with pytest.raises(DataRefused, match=sentence):
        make_plan(job(train=f"cifar/{name}"), roots, tmp_path, [])


def job(train: str = "cifar/train.bin"):
    data = {"train": train, "test": "cifar/test.bin"}
    return image_job(
        MOBILENET,
        source__model={"config": RESNET},
        source__data=data,
        target__data=data,
        transfer__method="project",
    )


@pytest.mark.parametrize("method", ["project", "anchored", "lpka"])
def test_a_resnet_into_a_mobilenet(method: str, roots: Roots, tmp_path: Path) -> None:
    document = job().model_dump(mode="json")
    document["transfer"]["method"] = method
    spec = type(job()).model_validate(document)
    plan = make_plan(spec, roots, tmp_path, [])
    assert plan.pairing is not None
    assert run(spec, "source", tmp_path, roots).metric == "accuracy"
    result = run(spec, "transfer-0", tmp_path, roots)
    assert result.transferred_parameters >= plan.pairing.transferable_parameters > 0, "the plan counts two labels"
    assert np.isfinite(result.final_loss)


def test_the_hubs_parquet_is_read_by_its_own_columns(tmp_path: Path) -> None:
    names = [f"name {number}" for number in range(100)]
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=names)})
    for split, count in (("train", 20), ("test", 4)):
        rows: dict[str, list[Any]] = {"img": [], "fine_label": []}
        for row in range(count):
            written = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), row, dtype=np.uint8)).save(written, "PNG")
            rows["img"].append({"bytes": written.getvalue(), "path": None})
            rows["fine_label"].append(99 - row)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert str(pq.read_schema(tmp_path / "test.parquet").field("img").type).startswith("struct<bytes")
    processor = plain_image_processor(32, [0.0] * 3, [1.0] * 3)
    data = DataSpec(train="train.parquet", test="test.parquet", image="img", label="fine_label")
    task = read_examples("image-classification", data, Roots((), (tmp_path,)), images=processor)
    batch = task.test.batch(torch.arange(4))
    assert task.labels == tuple(names)
    assert batch["labels"].tolist() == [99, 98, 97, 96]
    assert (batch["pixel_values"][:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3]
