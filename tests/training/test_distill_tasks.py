"""Every task is distilled: a step's loss against plain references, on labelled and on unlabelled inputs; resumption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mergenet_core.errors import DataRefused, ModelRefused, SpecInvalid
from mergenet_core.models.loading import load_trained
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.tasks.task import Batch, Task
from mergenet_core.training.context import open_trial
from mergenet_core.training.distillation.teacher import prepare_teacher
from mergenet_core.training.loop import batch_index, model_inputs
from mergenet_core.training.trial import Interrupted
from tests.tasks.words import WORDS, write_words
from tests.training.distilling import CASES, Case, distilling_job, write_world
from tests.training.test_distill import plain_dkd, plain_kd
from tests.training.tiny import Recorder, prepared, run, trial_named

Rows = list[list[float]]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    torch.set_num_threads(1)
    return write_world(tmp_path_factory.mktemp("distilling"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, roots: Roots) -> dict[str, Path]:
    """A job's folder for each task, with its trained source."""
    folders = {}
    for name, case in CASES.items():
        folders[name] = tmp_path_factory.mktemp("source")
        run(distilling_job(case, pool=False), "source", folders[name], roots)
    return folders


def rows_of(task: str, outputs: Any, batch: Batch) -> list[tuple[Rows, list[int] | None]]:
    """What a model chooses of, in plain lists: per kind of choice its rows, and the right column of each."""
    if task == "question-answering":
        kinds = []
        for logits, name in ((outputs.start_logits, "start_positions"), (outputs.end_logits, "end_positions")):
            lengths = batch["attention_mask"].sum(dim=1).tolist()
            rows = [row[:length].double().tolist() for row, length in zip(logits, lengths, strict=True)]
            kinds.append((rows, batch[name].tolist() if name in batch else None))
        return kinds
    if task.endswith("language-modelling"):
        logits, labels = outputs.logits[:, :, : len(WORDS)], batch["labels"]
        if task.startswith("causal"):
            logits, labels = logits[:, :-1], labels[:, 1:]
        rows, right = [], []
        for b in range(len(labels)):
            for t in range(labels.shape[1]):
                if int(labels[b, t]) != -100:
                    rows.append(logits[b, t].double().tolist())
                    right.append(int(labels[b, t]))
        return [(rows, right)]
    assert task == "image-text-retrieval"
    kinds = []
    for logits in (outputs.logits_per_image, outputs.logits_per_text):
        rows, right = [], []
        for one, image in enumerate(batch["image"].tolist()):
            kept = [k for k, other in enumerate(batch["image"].tolist()) if k == one or other != image]
            rows.append(logits[one, kept].double().tolist())
            right.append(kept.index(one))
        kinds.append((rows, right))
    return kinds


def binary_kd(student: Tensor, teacher: Tensor, t: float) -> float:
    """For each question the sum over labels of the divergence between yes and no, times T²."""
    total = 0.0
    for ours, theirs in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        for z_s, z_t in zip(ours, theirs, strict=True):
            p, q = (1 / (1 + math.exp(-z / t)) for z in (z_t, z_s))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return t * t * total / len(student)


def plain_loss(job: JobSpec, student: nn.Module, teacher: nn.Module, task: Task, batch: Batch) -> float:
    name, spec = job.target.task, job.transfer.distill
    assert spec is not None
    inputs = model_inputs(batch, task)
    with torch.no_grad():
        ours, theirs = student(**inputs), teacher(**inputs)
    if name == "visual-question-answering":
        return binary_kd(ours.logits, theirs.logits, spec.temperature)
    found = []
    for (mine, right), (taught, _) in zip(rows_of(name, ours, batch), rows_of(name, theirs, batch), strict=True):
        if spec.loss == "dkd":
            known = right if right is not None else [max(range(len(row)), key=row.__getitem__) for row in taught]
            single = [
                plain_dkd([a], [b], [c], spec.temperature, 1.0, 8.0)
                for a, b, c in zip(mine, taught, known, strict=True)
            ]
        else:
            single = [plain_kd([a], [b], spec.temperature) for a, b in zip(mine, taught, strict=True)]
        found.append(sum(single) / len(single))
    return sum(found) / len(found)


def assert_a_step_has_the_plain_loss(job: JobSpec, folder: Path, roots: Roots) -> None:
    training = prepared(job, "distill-0", folder, roots)
    task, spec = training.task, job.transfer.distill
    assert spec is not None
    context = open_trial(job, trial_named(job, "distill-0"), JobFolder(folder), roots)
    teacher = prepare_teacher(context, task, attempt=1, stop_if_requested=lambda: False)
    source = load_trained(folder / "source", job.target.task, task.labels, seed=0).eval()
    student = training.engine.module.train()
    labelled = task.train.batch(batch_index(len(task.train), 8, seed=0, step=0))
    taught = labelled
    if task.unlabelled is not None:
        taught = task.unlabelled.batch(batch_index(len(task.unlabelled), 4, seed=0, step=0, stream=5))
        assert not set(taught) & {"start_positions", "end_positions", "scores"}
    with torch.no_grad():
        task_loss = float(task.loss(student(**model_inputs(labelled, task)), labelled))
    distilled = plain_loss(job, student, source, task, taught)
    assert distilled > 1e-3, "the teacher differs from the student"
    training.advance(teacher.distillation)
    assert training.loss == pytest.approx(spec.task_share * task_loss + spec.weight * distilled, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("pool", [False, True], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_has_the_loss_of_the_equations(case: Case, pool: bool, sources: dict[str, Path], roots: Roots) -> None:
    assert_a_step_has_the_plain_loss(distilling_job(case, pool=pool), sources[case.task], roots)


@pytest.mark.parametrize("pool", [False, True], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "visual-question-answering"])
def test_a_step_of_decoupled_distillation_has_the_loss_of_the_equations(
    name: str, pool: bool, sources: dict[str, Path], roots: Roots
) -> None:
    transfer = {"method": "project", "distill": {"loss": "dkd", "weight": 0.3, "temperature": 3.0}}
    if pool:
        transfer["distill"]["pool_batch_size"] = 4
    job = distilling_job(CASES[name], pool=pool, transfer=transfer)
    assert_a_step_has_the_plain_loss(job, sources[name], roots)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stopped_distillation_resumes_bit_for_bit(
    case: Case, sources: dict[str, Path], roots: Roots, tmp_path: Path
) -> None:
    job = distilling_job(case, pool=True)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "source").symlink_to(sources[case.task] / "source")
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
    assert whole.teacher["test"] >= 0
    assert whole.data["unlabelled"]["examples"] == whole.data["unlabelled"]["of"] > 0


def test_a_pool_from_the_training_split_has_no_question_on_a_held_out_text(
    sources: dict[str, Path], roots: Roots
) -> None:
    case = CASES["question-answering"]
    data = case.data | {"unlabelled_from_train": True, "validation_limit": 4, "train_limit": 8}
    target = {"model": {"config": case.config}, "task": case.task, "data": data}
    task: Any = prepared(distilling_job(case, pool=False, target=target), "distill-0", sources[case.task], roots).task
    pool, held = ({one.context for one in split.questions} for split in (task.unlabelled, task.validation))
    assert not pool & held
    assert len(task.unlabelled.questions) == 48 - 3 * len(held), "three questions a text"


REFUSED = [
    ("visual-question-answering", {"distill": {"loss": "dkd"}}, "dkd sets one right label apart.*take kd"),
    ("question-answering", {}, "different tokenizers; give both the same one"),
    ("causal-language-modelling", {}, "belong to tokens, and source and target have different tokenizers"),
]


@pytest.mark.parametrize(("name", "transfer", "sentence"), REFUSED, ids=[case[0] for case in REFUSED])
def test_the_plan_refuses_what_cannot_be_distilled(
    name: str, transfer: Any, sentence: str, roots: Roots, tmp_path: Path
) -> None:
    write_words(roots.models[0] / "other", [*WORDS[:5], *reversed(WORDS[5:])])
    case = CASES[name]
    tokenizer = "other" if not transfer else "words"
    target = {"model": {"config": case.config, "tokenizer": tokenizer}, "task": name, "data": case.data}
    job = distilling_job(case, pool=False, target=target, transfer={"method": "project"} | transfer)
    with pytest.raises(SpecInvalid, match=sentence):
        make_plan(job, roots, tmp_path, [])
    if not transfer:
        other = distilling_job(case, pool=False, target=target, arms=["transfer", "control"])
        make_plan(other, roots, tmp_path, [])


def test_a_worker_refuses_a_teacher_that_makes_other_tokens_of_the_same_vocabulary(
    roots: Roots, sources: dict[str, Path], tmp_path: Path
) -> None:
    """With the same entries but another way of splitting texts, positions are not those of the same tokens."""
    case, shouting = CASES["masked-language-modelling"], roots.models[0] / "shouting"
    write_words(shouting)
    written = json.loads((shouting / "tokenizer.json").read_text())
    written["normalizer"] = {"type": "Replace", "pattern": {"String": "is"}, "content": "is is"}
    (shouting / "tokenizer.json").write_text(json.dumps(written))
    (tmp_path / "source").symlink_to(sources[case.task] / "source")
    target = {"model": {"config": case.config, "tokenizer": "shouting"}, "task": case.task, "data": case.data}
    job = distilling_job(case, pool=False, target=target)
    make_plan(job, roots, tmp_path, [])
    with pytest.raises(DataRefused, match="the source's tokenizer makes other tokens than the target's"):
        run(job, "distill-0", tmp_path, roots)


def test_a_worker_refuses_a_teacher_without_a_trained_head(
    roots: Roots, sources: dict[str, Path], tmp_path: Path
) -> None:
    case = CASES["question-answering"]
    bare = load_trained(sources[case.task] / "source", case.task, ("start", "end"), seed=0).base_model
    inside = Roots((*roots.models, tmp_path / "models"), roots.data)
    bare.save_pretrained(tmp_path / "models" / "bare")
    write_words(tmp_path / "models" / "bare")
    job = distilling_job(case, pool=False, source={"model": {"path": "bare"}})
    with pytest.raises(SpecInvalid, match="the source has no head for question-answering"):
        make_plan(job, inside, tmp_path, [])
    with pytest.raises(ModelRefused, match=r"no trained head for question-answering: qa_outputs.*distill\.teacher"):
        run(job, "distill-0", tmp_path, inside)


def test_outputs_that_would_take_too_much_memory_are_read_in_the_step(
    monkeypatch: pytest.MonkeyPatch, sources: dict[str, Path], roots: Roots, tmp_path: Path
) -> None:
    case = CASES["visual-question-answering"]
    curves = {}
    for limit in (2**20, 0):
        monkeypatch.setattr("mergenet_core.training.distillation.teacher_outputs.STORED_BYTES", limit)
        folder = tmp_path / str(limit)
        folder.mkdir()
        (folder / "source").symlink_to(sources[case.task] / "source")
        run(distilling_job(case, pool=True), "distill-0", folder, roots, recorder := Recorder())
        curves[limit] = list(recorder.losses.values())
    assert curves[0] == pytest.approx(curves[2**20], abs=1e-6)
