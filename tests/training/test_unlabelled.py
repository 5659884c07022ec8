"""Distillation through unlabelled inputs: a step's loss, resumption, and what is recorded of the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mergenet_core.spec.job import DistillSpec, JobSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.training.distillation.distill import Distillation
from mergenet_core.training.loop import batch_index, draw_seed
from mergenet_core.training.trial import Interrupted
from tests.training.test_distill import plain_dkd, plain_kd
from tests.training.tiny import CNN, Recorder, image_job, prepared, run, text_job, text_rows, write_lines

POOL = 30


@pytest.fixture(scope="module", autouse=True)
def pool_files(roots: Roots) -> None:
    """Unlabelled files: 30 texts and 30 images, without a column `label`."""
    texts = [{"text": row["text"]} for row in text_rows(POOL, 99)]
    write_lines(roots.data[0] / "pool.jsonl", texts)
    pq.write_table(
        pq.read_table(roots.data[0] / "train.parquet").select(["image"])[:POOL], roots.data[0] / "pool.parquet"
    )


def job_with_pool(kind: str, **changes: Any) -> JobSpec:
    arms = ["transfer", "control", "distill", "transfer+distill"]
    if kind == "images":
        job = image_job(CNN, arms=arms, transfer__method="project", **changes)
        return job
    return text_job(arms=arms, **changes)


TEXTS = {"target__data__unlabelled": "pool.jsonl"}
IMAGES = {"target__data__unlabelled": "pool.parquet"}
PARTS = {
    "kd": {"loss": "kd", "weight": 0.6},
    "kd alone": {"loss": "kd", "weight": 1.0},
    "dkd": {"loss": "dkd", "weight": 0.3, "temperature": 2.0},
}


@pytest.mark.parametrize("loss", PARTS)
def test_a_step_on_a_pool_has_the_loss_of_the_equations(loss: str, roots: Roots, job_folder: Path) -> None:
    """Cross entropy on the labelled batch, and the plain reference of KD or DKD on the pool's, agree to 1e-6."""
    spec = DistillSpec(**PARTS[loss])
    no_dropout = {f"target__model__config__{name}_dropout_prob": 0.0 for name in ("hidden", "attention_probs")}
    training = prepared(job_with_pool("texts", **TEXTS, **no_dropout), "distill-0", job_folder, roots)
    pool, train = training.task.unlabelled, training.task.train
    teacher_nl = 3 * torch.randn(POOL, 3, generator=torch.Generator().manual_seed(1))
    pool_b = batch_index(POOL, 4, seed=0, step=0, stream=5)
    train_b = batch_index(len(train), 8, seed=0, step=0)
    labelled = train.batch(train_b)
    labels_b = labelled.pop("labels")
    with torch.no_grad():
        task_loss = float(torch.nn.functional.cross_entropy(training.engine(**labelled).logits, labels_b))
        student_bl = training.engine(**pool.batch(pool_b)).logits.double().tolist()
    taught = teacher_nl[pool_b].double().tolist()
    if spec.loss == "kd":
        expected = (1 - spec.weight) * task_loss + spec.weight * plain_kd(student_bl, taught, spec.temperature)
    else:
        classes = [max(range(3), key=row.__getitem__) for row in taught]
        expected = task_loss + spec.weight * plain_dkd(student_bl, taught, classes, spec.temperature, 1.0, 8.0)
    training.advance(Distillation(spec, lambda index_b, _: {"logits": teacher_nl[index_b]}, pool_batch_size=4))
    assert training.loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "data"), [("texts", TEXTS), ("images", IMAGES)], ids=["texts", "images"])
def test_a_stopped_trial_with_a_pool_resumes_bit_for_bit(
    kind: str, data: dict[str, Any], roots: Roots, tmp_path: Path
) -> None:
    job = job_with_pool(kind, **data)
    for name in ("whole", "parts"):
        if kind == "images":
            run(job, "source", tmp_path / name, roots)
    whole = run(job, "distill-0", tmp_path / "whole", roots)
    with pytest.raises(Interrupted):
        run(job, "distill-0", tmp_path / "parts", roots, Recorder({3: "stop"}))
    parts = run(job, "distill-0", tmp_path / "parts", roots, attempt=2)
    assert (parts.last, parts.final_loss) == (whole.last, whole.final_loss)
    one, other = (
        load_file(tmp_path / name / "trials" / "distill-0" / "model" / "model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.data["unlabelled"]["examples"] == POOL
    assert whole.data["unlabelled"]["of"] == POOL
    assert whole.data["unlabelled"]["sha256"] != whole.data["test"]["sha256"]


def test_the_pool_changes_the_arms_that_distil_and_no_other(roots: Roots, tmp_path: Path) -> None:
    finals = {}
    for name, data in (("without", {}), ("with", TEXTS)):
        for arm in ("control", "distill"):
            finals[name, arm] = run(job_with_pool("texts", **data), f"{arm}-0", tmp_path / name, roots).final_loss
    assert finals["with", "control"] == finals["without", "control"]
    assert finals["with", "distill"] != finals["without", "distill"]


@pytest.mark.parametrize("limit", [None, 40])
def test_a_pool_from_the_training_split_holds_no_validation_row(
    limit: int | None, roots: Roots, job_folder: Path
) -> None:
    """60 rows, 12 held out: the pool has the other 48, or the first of them; the 24 labelled ones included."""
    path = roots.data[0] / "distinct.jsonl"
    write_lines(
        path, [row | {"text": f"{row['text']} {'the ' * (n % 7)}{n}"} for n, row in enumerate(text_rows(60, 5))]
    )
    changes = {"target__data__train": "distinct.jsonl", "target__data__unlabelled_from_train": True}
    if limit is not None:
        changes["target__data__unlabelled_limit"] = limit
    task = prepared(job_with_pool("texts", **changes), "distill-0", job_folder, roots).task
    assert task.unlabelled is not None
    assert len(task.unlabelled) == (limit or 48)
    assert "labels" not in task.unlabelled.batch(torch.arange(2))
    assert task.data_summary["unlabelled"]["examples"] == (limit or 48)
    assert task.data_summary["unlabelled"]["of"] == 60


def test_imdbs_unlabelled_reviews_are_read_from_their_folder(roots: Roots, job_folder: Path) -> None:
    for label, rows in (("pos", 30), ("neg", 30), ("unsup", 9)):
        (roots.data[0] / "imdb" / label).mkdir(parents=True, exist_ok=True)
        for number in range(rows):
            (roots.data[0] / "imdb" / label / f"{number}.txt").write_text(f"the {label} apple saw")
    (roots.data[0] / "imdb-test" / "pos").mkdir(parents=True, exist_ok=True)
    (roots.data[0] / "imdb-test" / "pos" / "0.txt").write_text("a drum")
    changes = {"train": "imdb", "test": "imdb-test", "unlabelled": "imdb/unsup"}
    job = job_with_pool("texts", **{f"target__data__{name}": value for name, value in changes.items()})
    task = prepared(job, "distill-0", job_folder, roots).task
    assert task.unlabelled is not None
    assert len(task.unlabelled) == 9


COPIES = {"arms": ["transfer", "control", "distill"], "transfer__method": "project"}


def test_copies_are_taught_by_the_equation_and_do_not_depend_on_their_batch(roots: Roots, job_folder: Path) -> None:
    """KD with weight 0.6 on copies of the step's images; the teacher is a linear function of their pixels."""
    spec = DistillSpec(weight=0.6, copies=True)
    training = prepared(image_job(CNN, **COPIES), "distill-0", job_folder, roots)
    train = training.task.train
    index_b = batch_index(len(train), 8, seed=0, step=0)
    images = train.batch(index_b)["pixel_values"]
    whole, alone = train.with_copies(index_b, 5)["pixel_values"], train.with_copies(index_b[3:4], 5)["pixel_values"]
    assert torch.equal(whole[:8], images), "the images as they are come first"
    assert torch.equal(whole[[3, 11]], alone)
    assert not torch.equal(whole[8:], train.with_copies(index_b, 6)["pixel_values"][8:])
    weights_pl = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    drawn: list[int] = []

    def teach(index_b: torch.Tensor, draw: int) -> dict[str, torch.Tensor]:
        drawn.append(draw)
        return {"logits": train.with_copies(index_b, draw)["pixel_values"].flatten(1) @ weights_pl}

    draw = draw_seed(0, 0, stream=6)
    labelled, copied = train.batch(index_b), train.with_copies(index_b, draw)["pixel_values"]
    with torch.no_grad():
        module = training.engine.module.train()
        task_loss = float(
            torch.nn.functional.cross_entropy(module(labelled["pixel_values"]).logits, labelled["labels"])
        )
        student_bl = module(copied).logits.double().tolist()
    expected = 0.4 * task_loss + 0.6 * plain_kd(student_bl, (copied.flatten(1) @ weights_pl).double().tolist(), 4.0)
    training.advance(Distillation(spec, teach))
    assert drawn == [draw]
    assert training.loss == pytest.approx(expected, abs=1e-5)


def test_a_stopped_trial_with_copies_resumes_bit_for_bit(roots: Roots, tmp_path: Path) -> None:
    job = image_job(CNN, **COPIES, transfer__distill={"copies": True, "weight": 0.5})
    results = {}
    for name, requests in (("whole", {}), ("parts", {3: "stop"})):
        run(job, "source", tmp_path / name, roots)
        if requests:
            with pytest.raises(Interrupted):
                run(job, "distill-0", tmp_path / name, roots, Recorder(requests))
        results[name] = run(job, "distill-0", tmp_path / name, roots, attempt=2)
    assert results["parts"].final_loss == results["whole"].final_loss
