"""Questions on images: read in VQA v2.0's form and from tables, batched, trained on and measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import load_tokenizer
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.data import pixels
from tests.tasks.examples import read_examples
from tests.tasks.pictures import RGB, SIZE, write_image, write_vqa
from tests.tasks.words import write_words
from tests.training.tiny import write_lines

TRAIN, TEST = (f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json" for subset in ("train2014", "val2014"))


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    write_words(tmp_path / "words")
    write_vqa(tmp_path / "vqa", "train2014", 30, 1)
    write_vqa(tmp_path / "vqa", "val2014", 6, 2)
    return Roots((), (tmp_path,))


def load(roots: Roots, processor: Any = None, **changes: Any) -> Any:
    data = DataSpec(**{"train": TRAIN, "test": TEST, "image_size": SIZE, "max_length": 16} | changes)
    tokenizer = load_tokenizer(roots.data[0] / "words")
    return read_examples("visual-question-answering", data, roots, seed=3, tokenizer=tokenizer, images=processor)


def rewritten(path: Path, change: Any) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_the_published_form_is_read_with_images_and_answers(roots: Roots) -> None:
    task = load(roots)
    assert task.metric == "accuracy"
    assert task.labels[0] in {"yes", "no"}, "the most frequent answer comes first"
    assert set(task.labels) == {"yes", "no", *RGB}
    assert task.data_summary["train"]["of"] == 60
    assert len(task.test) == 12
    batch = task.test.batch(torch.arange(12))
    assert batch["pixel_values"].shape == (12, 3, SIZE, SIZE)
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1]), "both questions are on one image"
    asked = json.loads((roots.data[0] / TEST).read_text())["questions"]
    written = json.loads((roots.data[0] / "vqa" / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    assert [one.text for one in task.test.questions] == [one["question"] for one in asked]
    for row, annotation in enumerate(written):
        label = task.labels.index(annotation["multiple_choice_answer"])
        assert batch["scores"][row, label] == 1.0
        assert batch["scores"][row].max() <= 1.0


def test_the_target_is_what_an_answer_scores(roots: Roots) -> None:
    table = [
        {"image": f"vqa/train2014/COCO_train2014_{1000 + row:012d}.jpg", "question": "what ?", "answers": answers}
        for row, answers in enumerate(
            [["red"] * 8 + ["blue"] * 2, ["green", "green", "red", "blue", "grey", "grey"], "Blue."] * 3
        )
    ]
    write_lines(roots.data[0] / "table.jsonl", table)
    task = load(roots, train="table.jsonl", test="table.jsonl")
    scores = dict(zip(task.labels, task.test.batch(torch.arange(3))["scores"].T.tolist(), strict=True))
    assert scores["red"] == pytest.approx([1.0, 5 / 18, 0.0], abs=1e-6)
    assert scores["blue"] == pytest.approx([0.6, 5 / 18, 1.0], abs=1e-6)
    logits = torch.full((3, len(task.labels)), -20.0)
    logits[:, task.labels.index("blue")] = 20.0
    batch = task.test.batch(torch.arange(3))
    answers = torch.cat([task.answers({"logits": logits}, batch)] * 3)
    assert task.measure(answers, task.test)["accuracy"] == pytest.approx((0.6 + 5 / 18 + 1.0) / 3, abs=1e-6)
    assert task.terms(answers, task.test).tolist() == pytest.approx([0.6, 5 / 18, 1.0] * 3, abs=1e-6)


def test_a_label_scores_in_training_what_it_scores_as_an_answer(roots: Roots) -> None:
    answers = [["t-shirt"] * 10, ["t-shirt"] * 6 + ["two"] * 4, ["two"] * 10, ["2"] * 10, ["the cat", "cat"] * 5]
    table = [
        {"image": f"vqa/train2014/COCO_train2014_{1000 + row:012d}.jpg", "question": "what ?", "answers": given}
        for row, given in enumerate(answers * 2)
    ]
    write_lines(roots.data[0] / "table.jsonl", table)
    task = load(roots, train="table.jsonl", test="table.jsonl")
    assert set(task.labels) <= {"t-shirt", "t shirt", "two", "2", "cat"}, "each as it is compared at its questions"
    scores = task.test.batch(torch.arange(5))["scores"]
    expected = [[one.answers.score(label) for label in task.labels] for one in task.test.questions[:5]]
    assert scores.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    by_label = dict(zip(task.labels, scores.T.tolist(), strict=True))
    assert by_label["t-shirt"] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert by_label["two"] == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_accuracy_is_given_for_each_answer_type(roots: Roots) -> None:
    task = load(roots)
    right = torch.tensor([task.labels.index(one.answers.most_common) for one in task.test.questions])
    assert task.measure(right, task.test) == {"accuracy": 1.0, "other_accuracy": 1.0, "yes/no_accuracy": 1.0}
    right[:] = task.labels.index("yes")
    found = task.measure(right, task.test)
    assert found["accuracy"] == pytest.approx((found["other_accuracy"] + found["yes/no_accuracy"]) / 2)
    assert found["other_accuracy"] == 0.0


def test_the_loss_is_binary_cross_entropy_over_all_labels(roots: Roots) -> None:
    task = load(roots)
    batch = task.train.batch(torch.arange(4))
    loss = task.loss({"logits": torch.zeros(4, len(task.labels))}, batch)
    assert float(loss) == pytest.approx(len(task.labels) * math.log(2), abs=1e-5)
    wrong = {**batch, "scores": torch.zeros_like(batch["scores"])}
    assert float(task.loss({"logits": torch.full((4, len(task.labels)), -30.0)}, wrong)) < 1e-6


def test_images_of_held_out_questions_are_never_trained_on(roots: Roots) -> None:
    task = load(roots, validation_limit=10)
    assert len(task.validation) == 10
    assert len(task.train) == 50
    asked = json.loads((roots.data[0] / TRAIN).read_text())["questions"]
    known = {(one["image_id"], one["question"]) for one in asked}
    assert len(known) == 60
    images = [
        {image for image, text in known if any(text == one.text for one in part.questions)}
        for part in (task.train, task.validation)
    ]
    assert len(images[1]) >= 5
    assert task.data_summary["train"]["images"] + task.data_summary["validation"]["images"] == 30


def test_answers_beyond_the_limit_are_no_labels(roots: Roots) -> None:
    task = load(roots, answer_limit=2)
    assert task.labels == load(roots).labels[:2]
    assert task.train.batch(torch.arange(10))["scores"].shape == (10, 2)


def test_a_split_too_large_to_hold_is_decoded_when_it_is_batched(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    held = load(roots).test.batch(torch.arange(12))
    monkeypatch.setattr(pixels, "HELD_BYTES", 0)
    found = load(roots).test
    assert torch.equal(found.batch(torch.arange(12))["pixel_values"], held["pixel_values"])


def test_images_may_lie_in_another_folder(roots: Roots) -> None:
    (roots.data[0] / "coco").mkdir()
    for subset in ("train2014", "val2014"):
        (roots.data[0] / "vqa" / subset).rename(roots.data[0] / "coco" / subset)
    with pytest.raises(DataRefused, match=r"the folder train2014 with the images of .* is neither next to the file"):
        load(roots)
    assert len(load(roots, images="coco").train) == 48


def test_a_processor_that_keeps_proportions_gives_way_to_squares(roots: Roots) -> None:
    for subset in ("train2014", "val2014"):
        for path in (roots.data[0] / "vqa" / subset).iterdir():
            Image.new("RGB", (12, 6), "red").save(path)
    task = load(roots, processor=ViltImageProcessorPil(image_mean=[0.0, 0.5, 0.5], image_std=[0.5, 0.5, 0.25]))
    pixels_bchw = task.test.batch(torch.arange(2))["pixel_values"]
    assert pixels_bchw.shape == (2, 3, SIZE, SIZE)
    assert pixels_bchw[0, :, 0, 0].tolist() == pytest.approx([2.0, -1.0, -2.0], abs=0.02)
    assert task.processor.images.size == {"height": SIZE, "width": SIZE}


FAULTS = [
    (lambda data: (data / "vqa/v2_mscoco_train2014_annotations.json").unlink(), "has no file of answers in its folder"),
    (lambda data: rewritten(data / TRAIN, lambda file: file.update(questions=[])), "has no questions"),
    (lambda data: rewritten(data / TRAIN, lambda file: file["questions"][0].pop("image_id")), "not in VQA v2.0's form"),
    (
        lambda data: rewritten(data / TRAIN, lambda file: file["questions"][1].update(question_id=5)),
        "question 5 has no",
    ),
    (lambda data: rewritten(data / TRAIN, lambda file: file["questions"][1].update(question=" ")), "question 1 is ' '"),
    (
        lambda data: rewritten(
            data / "vqa/v2_mscoco_train2014_annotations.json",
            lambda file: file["annotations"][2].update(answers=[{"answer": "red"}] * 3),
        ),
        "question 2 has answers .* at least 4",
    ),
    (
        lambda data: (data / "vqa/train2014" / f"COCO_train2014_{1003:012d}.jpg").unlink(),
        "COCO_train2014_000000001003.jpg is not in train2014",
    ),
    (
        lambda data: (data / "vqa/train2014" / f"COCO_train2014_{1003:012d}.jpg").write_bytes(b"GIF"),
        "is not an image that can be read",
    ),
]


@pytest.mark.parametrize(("harm", "sentence"), FAULTS, ids=range(len(FAULTS)))
def test_faults_are_named(harm: Any, sentence: str, roots: Roots) -> None:
    harm(roots.data[0])
    with pytest.raises(DataRefused, match=sentence):
        load(roots)


def test_one_answer_for_all_is_refused(roots: Roots) -> None:
    rows = []
    for row in range(8):
        write_image(roots.data[0] / f"{row}.png", "red")
        rows.append({"image": f"{row}.png", "question": "what ?", "answers": "red"})
    write_lines(roots.data[0] / "table.jsonl", rows)
    with pytest.raises(DataRefused, match="every question has the answer 'red'"):
        load(roots, train="table.jsonl", test="table.jsonl")
