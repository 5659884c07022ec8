"""Images and captions: read in MSCOCO's form and from tables, learned in pairs, measured as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import load_tokenizer
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.image_text_retrieval.scores import image_terms, recalls
from tests.tasks.examples import read_examples
from tests.tasks.pictures import RGB, SIZE, write_captions, write_image
from tests.tasks.words import write_words
from tests.training.tiny import write_lines

TRAIN, TEST = (f"coco/annotations/captions_{subset}.json" for subset in ("train2017", "val2017"))


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    write_words(tmp_path / "words")
    write_captions(tmp_path / "coco", "train2017", 20, 1)
    write_captions(tmp_path / "coco", "val2017", 7, 2)
    return Roots((), (tmp_path,))


def load(roots: Roots, **changes: Any) -> Any:
    data = DataSpec(**{"train": TRAIN, "test": TEST, "image_size": SIZE, "max_length": 16} | changes)
    tokenizer = load_tokenizer(roots.data[0] / "words")
    return read_examples("image-text-retrieval", data, roots, seed=3, tokenizer=tokenizer)


def texts(task: Any, ids: torch.Tensor) -> list[str]:
    return task.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_a_split_to_learn_from_has_an_image_and_a_caption_an_example(roots: Roots) -> None:
    task = load(roots)
    written = json.loads((roots.data[0] / TRAIN).read_text())
    assert task.data_summary["train"]["examples"] == 16
    assert task.data_summary["train"]["of"] == 20
    assert task.data_summary["validation"]["examples"] == 4, "limits count images"
    assert len(task.train) == task.data_summary["train"]["captions"]
    held = task.data_summary["validation"]["captions"]
    assert len(task.train) + held == len(written["annotations"]) == sum(1 + image % 3 for image in range(20))
    batch = task.train.batch(torch.arange(len(task.train)))
    assert batch["pixel_values"].shape == (len(task.train), 3, SIZE, SIZE)
    assert batch["input_ids"].shape[0] == len(task.train)
    spoken = [next(colour for colour in RGB if colour in text) for text in texts(task, batch["input_ids"])]
    assert len(set(spoken)) == 4
    reddest = batch["pixel_values"][:, 0].mean(dim=(1, 2)) - batch["pixel_values"][:, 1:].mean(dim=(1, 2, 3))
    assert max(reddest[row] for row, colour in enumerate(spoken) if colour != "red") < min(
        reddest[row] for row, colour in enumerate(spoken) if colour == "red"
    ), "a caption stands with its own image"


def test_a_split_to_measure_on_has_an_image_with_all_its_captions_an_example(roots: Roots) -> None:
    task = load(roots)
    written = json.loads((roots.data[0] / TEST).read_text())
    assert len(task.test) == 7
    batch = task.test.batch(torch.tensor([0, 2, 1]))
    found = texts(task, batch["input_ids"])
    assert len(found) == 9
    own = {image: [a["caption"] for a in written["annotations"] if a["image_id"] == 2000 + image] for image in range(3)}
    assert found == [*own[0] * 3, *own[2], *own[1], own[1][1]], "where one has fewer, its last stands in"


def test_what_is_measured_is_recall_over_the_whole_split_without_stand_ins(roots: Roots) -> None:
    task = load(roots)
    generator = torch.Generator().manual_seed(5)
    counts = torch.tensor([1 + image % 3 for image in range(7)])
    image_m = torch.arange(7).repeat_interleave(counts)
    images, captions = torch.randn(7, 4, generator=generator), torch.randn(len(image_m), 4, generator=generator)
    batches = torch.arange(7).split(3)
    kept = [
        task.answers({"image_embeds": images[part], "text_embeds": captions[task.test.captions_nk[part].flatten()]}, {})
        for part in batches
    ]
    assert [rows.shape for rows in kept] == [(3, 16), (3, 16), (1, 16)]
    assert task.measure(torch.cat(kept), task.test) == recalls(images, captions, image_m)
    assert torch.equal(task.terms(torch.cat(kept), task.test), image_terms(images, captions, image_m))


def test_another_caption_of_the_same_image_is_neither_right_nor_wrong(roots: Roots) -> None:
    task = load(roots)
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    alone = task.loss({"logits_per_image": logits}, {"image": torch.arange(4)})
    expected = (
        torch.nn.functional.cross_entropy(logits, torch.arange(4))
        + torch.nn.functional.cross_entropy(logits.T, torch.arange(4))
    ) / 2
    assert float(alone) == pytest.approx(float(expected), abs=1e-6)
    duplicates = torch.tensor([0, 1, 0, 3])
    changed = logits.clone()
    changed[0, 2], changed[2, 0] = 50.0, 50.0
    with_duplicates = [task.loss({"logits_per_image": one}, {"image": duplicates}) for one in (logits, changed)]
    assert float(with_duplicates[0]) == float(with_duplicates[1])
    assert float(with_duplicates[0]) < float(alone)


def test_a_table_may_give_a_caption_a_row_or_all_in_one(roots: Roots) -> None:
    data = roots.data[0]
    listed, spread = [], []
    for row in range(6):
        write_image(data / f"{row}.png", "red", row)
        captions = [f"the cat is {colour}" for colour in ("red", "blue")[: 1 + row % 2]]
        listed.append({"image": f"{row}.png", "caption": captions})
        spread += [{"image": f"{row}.png", "caption": caption} for caption in captions]
    write_lines(data / "listed.jsonl", listed)
    write_lines(data / "spread.jsonl", spread)
    found = [load(roots, train=name, test=name).test for name in ("listed.jsonl", "spread.jsonl")]
    one, other = (part.batch(torch.arange(6)) for part in found)
    assert len(found[0]) == 6
    assert all(torch.equal(one[name], other[name]) for name in one)


def rewritten(path: Path, change: Any) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


FAULTS = [
    (lambda file: file.update(images=[], annotations=[]), "has no images"),
    (lambda file: file["images"][0].pop("file_name"), "not in the form of MSCOCO's captions"),
    (lambda file: file["annotations"][0].update(image_id=7), "not in the form of MSCOCO's captions"),
    (lambda file: file["annotations"].pop(0), "image 0 has no caption"),
    (lambda file: file["annotations"][0].update(caption=" "), "image 0 has ' '"),
    (lambda file: file["images"][0].update(file_name="gone.jpg"), "gone.jpg is not in train2017"),
    (lambda file: file["images"][0].update(file_name="../../../words/tokenizer.json"), "not a file below|not in"),
]


@pytest.mark.parametrize(("harm", "sentence"), FAULTS, ids=range(len(FAULTS)))
def test_faults_are_named(harm: Any, sentence: str, roots: Roots) -> None:
    rewritten(roots.data[0] / TRAIN, harm)
    with pytest.raises(DataRefused, match=sentence):
        load(roots)
