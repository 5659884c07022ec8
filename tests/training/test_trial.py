"""A trial from spec to result: resumed bit for bit, the same data in every arm, exported without the adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from mergenet_core.errors import ModelRefused, OutOfMemory, TrainingDiverged
from mergenet_core.model_files.read_model import read_vocabulary
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.storage.published_folder import verify
from mergenet_core.training.loop import batch_index, raise_if_out_of_memory
from mergenet_core.training.trial import Interrupted
from tests.training.tiny import CNN, MLP, Recorder, image_job, prepared, run, text_job, write_bert

SGD = {"train__optimizer": "sgd", "train__learning_rate": 0.05}
CASES: dict[str, tuple[str, JobSpec]] = {
    "control, AdamW, dropout": ("control-3", text_job()),
    "control, SGD, cosine": ("control-3", text_job(**SGD, train__schedule="cosine", train__warmup_steps=2)),
    "project": ("transfer-3", text_job()),
    "anchored": ("transfer-3", text_job(transfer__method="anchored", transfer__cycle=2, transfer__stop_at=1.0)),
    "lpka, hypernetwork": (
        "transfer-3",
        text_job(transfer__method="lpka", transfer__cycle=2, transfer__stop_at=1.0, transfer__update="hypernetwork"),
    ),
    "distill, fine-tuned teacher": ("distill-3", text_job()),
    "sham": ("sham-3", text_job()),
    "bf16": ("control-3", text_job(train__precision="bf16")),
}


def weights(folder: Path, trial: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "trials" / trial / "model" / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_bit_equal_to_uninterrupted(case: str, tmp_path: Path, roots: Roots) -> None:
    trial, job = CASES[case]
    whole = run(job, trial, tmp_path / "whole", roots)
    with pytest.raises(Interrupted) as stopped:
        run(job, trial, tmp_path / "parts", roots, Recorder({3: "stop"}))
    assert stopped.value.checkpoint.step == 3
    recorder = Recorder()
    parts = run(job, trial, tmp_path / "parts", roots, recorder, attempt=2)
    assert min(recorder.losses) == 4, "the steps before the checkpoint are not repeated"
    assert parts.final_loss == whole.final_loss
    assert (parts.last, parts.best, parts.outcomes) == (whole.last, whole.best, whole.outcomes)
    assert_same(weights(tmp_path / "parts", trial), weights(tmp_path / "whole", trial))


@pytest.mark.parametrize("target", [MLP, CNN], ids=["mlp", "cnn"])
def test_images_train_a_source_first_and_resume_bit_equal(target: dict[str, Any], tmp_path: Path, roots: Roots) -> None:
    job = image_job(target)
    source = run(job, "source", tmp_path, roots)
    assert source.steps == 4
    verify(tmp_path / "source")
    whole = run(job, "transfer+distill-0", tmp_path, roots)
    expected = weights(tmp_path, "transfer+distill-0")
    assert whole.teacher["test"] == source.last["test"], "the source teaches as it is: its labels are the same"
    newest = sorted((tmp_path / "trials" / "transfer+distill-0" / "checkpoints").iterdir())[-1]
    (newest / "state.pt").write_bytes(b"torn")
    recorder = Recorder()
    again = run(job, "transfer+distill-0", tmp_path, roots, recorder, attempt=2)
    assert [kind for kind, _ in recorder.events][:2] == ["checkpoint.refused", "trial.resumed"]
    assert again.final_loss == whole.final_loss
    assert_same(weights(tmp_path, "transfer+distill-0"), expected)


def test_fine_tuning_of_a_teacher_that_was_stopped_starts_again(tmp_path: Path, roots: Roots) -> None:
    job = text_job()
    whole = run(job, "distill-0", tmp_path / "whole", roots)
    with pytest.raises(Interrupted) as stopped:
        run(job, "distill-0", tmp_path / "parts", roots, Recorder({0: "stop"}))
    assert stopped.value.checkpoint.step == 0
    assert not (tmp_path / "parts" / "teachers").exists()
    again = run(job, "distill-0", tmp_path / "parts", roots, attempt=2)
    assert (again.final_loss, again.teacher) == (whole.final_loss, whole.teacher)


def test_arms_of_a_seed_start_from_the_same_weights_and_see_the_same_examples(tmp_path: Path, roots: Roots) -> None:
    names = ("control-0", "transfer-0", "control-1")
    control, transfer, other = (prepared(text_job(), name, tmp_path, roots) for name in names)
    assert_same(control.engine.module.state_dict(), transfer.engine.module.state_dict())
    index_b = batch_index(24, 8, seed=0, step=5)
    first, second, third = (one.task.train.batch(index_b)["input_ids"] for one in (control, transfer, other))
    assert torch.equal(first, second)
    assert not torch.equal(first[:, :3], third[:, :3])


def test_every_epoch_sees_every_example_once_and_seeds_differ() -> None:
    drawn = torch.cat([batch_index(10, 4, seed=1, step=step) for step in range(5)])
    assert sorted(drawn[:10].tolist()) == list(range(10))
    assert sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert batch_index(3, 8, seed=1, step=0).bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert drawn.tolist() != torch.cat([batch_index(10, 4, seed=2, step=step) for step in range(5)]).tolist()


def test_the_export_is_the_target_without_adapter_and_loads_in_a_fresh_process(tmp_path: Path, roots: Roots) -> None:
    job = text_job(transfer__method="anchored", transfer__cycle=2)
    result = run(job, "transfer-0", tmp_path, roots)
    model = tmp_path / "trials" / "transfer-0" / "model"
    plain = BertForSequenceClassification(BertConfig.from_pretrained(model))
    assert set(load_file(model / "model.safetensors")) == set(plain.state_dict())
    assert result.parameters == sum(weight.numel() for weight in plain.parameters())
    adapter = load_file(model.parent / "adapter" / "adapter.safetensors")
    trained = [values for name, values in adapter.items() if not name.startswith("source.")]
    assert result.adapter_parameters == sum(values.numel() for values in trained) == 1284
    assert read_vocabulary(model) == read_vocabulary(roots.models[0] / "source")

    training = prepared(job, "transfer-0", tmp_path, roots)
    training.engine.module.load_state_dict(load_file(model / "model.safetensors"))
    texts = ["the apple and some pear", "harp"]
    inputs = dict(training.task.processor(texts, return_tensors="pt", padding=True))
    with torch.no_grad():
        expected = training.engine.module.eval()(**inputs).logits
    code = f"""
import json, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(model)!r}).eval()
tokens = AutoTokenizer.from_pretrained({str(model)!r})({texts!r}, return_tensors="pt", padding=True)
print(json.dumps([model(**tokens).logits.tolist(), model.config.id2label]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    logits, names = json.loads(done.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=0)
    assert names == {"0": "fruit", "1": "music", "2": "tools"}


def test_a_built_in_model_and_its_processor_load_after_one_import(tmp_path: Path, roots: Roots) -> None:
    job = image_job(CNN)
    run(job, "control-0", tmp_path, roots)
    model = str(tmp_path / "trials" / "control-0" / "model")
    training = prepared(job, "control-0", tmp_path, roots)
    training.engine.module.load_state_dict(load_file(f"{model}/model.safetensors"))
    with torch.no_grad():
        expected = training.engine.module.eval()(training.task.test.batch(torch.tensor([0, 1]))["pixel_values"]).logits
    code = f"""
import io, json, pyarrow.parquet as pq
from PIL import Image
import mergenet_core.models
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained({model!r}).eval()
rows = pq.read_table({str(roots.data[0] / "test.parquet")!r}).to_pylist()[:2]
images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
processor = AutoImageProcessor.from_pretrained({model!r}, backend="pil")
print(json.dumps(model(**processor(images, return_tensors="pt")).logits.tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, roots: Roots) -> None:
    recorder = Recorder({1: "checkpoint"})
    run(text_job(), "control-0", tmp_path, roots, recorder)
    assert [checkpoint.step for checkpoint in recorder.checkpoints] == [1, 2, 4, 6]
    kept = sorted(path.name for path in (tmp_path / "trials" / "control-0" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"]
    assert recorder.checkpoints[-1].path == "trials/control-0/checkpoints/step-00000006"
    verify(tmp_path / recorder.checkpoints[-1].path)


def test_the_exported_weights_are_those_of_the_last_step_and_not_the_best(tmp_path: Path, roots: Roots) -> None:
    result = run(text_job(train__eval_every=1), "control-0", tmp_path, roots)
    assert result.best["step"] < 6, "otherwise the last weights are also the best"
    terms = result.outcomes.terms()
    assert len(terms) == result.data["validation"]["examples"]
    assert sum(terms) / len(terms) == pytest.approx(result.last["validation"])
    last = load_file(tmp_path / "trials" / "control-0" / "checkpoints" / "step-00000006" / "model.safetensors")
    assert_same(weights(tmp_path, "control-0"), last)


def test_running_out_of_memory_is_an_error_that_names_settings_to_change() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    with pytest.raises(OutOfMemory, match=r"memory ran out at step 4 with train.batch_size 8; halve it"):
        raise_if_out_of_memory(raised.value, 4, 8)
    raise_if_out_of_memory(RuntimeError("shapes do not match"), 4, 8)


def test_training_learns(tmp_path: Path, roots: Roots) -> None:
    job = image_job(MLP, train={"steps": 60, "batch_size": 16, "learning_rate": 1e-2}, target__data__train_limit=48)
    assert run(job, "control-0", tmp_path, roots).last["test"] > 0.8


def test_a_loss_that_is_not_a_number_names_the_step(tmp_path: Path, roots: Roots) -> None:
    job = image_job(MLP, train={"steps": 60, "learning_rate": 100.0, "optimizer": "sgd", "clip_norm": None})
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d+; lower train.learning_rate"):
        run(job, "control-0", tmp_path, roots)
    assert not (tmp_path / "trials" / "control-0" / "model").exists()


def test_divergence_of_a_source_or_teacher_names_its_own_field(tmp_path: Path, roots: Roots) -> None:
    wild = {"steps": 60, "learning_rate": 100.0, "optimizer": "sgd", "clip_norm": None, "weight_decay": 10.0}
    with pytest.raises(TrainingDiverged, match=r"lower source\.train\.learning_rate"):
        run(image_job(MLP, source__train=wild), "source", tmp_path, roots)
    with pytest.raises(TrainingDiverged, match=r"lower transfer\.distill\.teacher\.learning_rate"):
        run(text_job(transfer__distill={"teacher": wild}), "distill-0", tmp_path, roots)


def test_a_source_with_the_labels_in_another_order_teaches_without_fine_tuning(tmp_path: Path, roots: Roots) -> None:
    for name, labels in (("ordered", ("fruit", "music", "tools")), ("turned", ("tools", "fruit", "music"))):
        write_bert(roots.models[0] / name, labels)
    turned = load_file(roots.models[0] / "turned" / "model.safetensors")
    turned["classifier.weight"] = turned["classifier.weight"][[2, 0, 1]]
    save_file(turned, roots.models[0] / "turned" / "model.safetensors", metadata={"format": "pt"})
    results = [
        run(text_job(source__model__path=name, transfer__distill={}), "distill-0", tmp_path / name, roots)
        for name in ("ordered", "turned")
    ]
    assert results[0].final_loss == results[1].final_loss
    assert results[0].teacher == results[1].teacher


def test_a_source_without_the_labels_cannot_teach_without_fine_tuning(tmp_path: Path, roots: Roots) -> None:
    job = text_job(transfer__distill={"temperature": 2.0})
    with pytest.raises(ModelRefused, match=r"no trained head.*transfer\.distill\.teacher"):
        run(job, "distill-0", tmp_path, roots)
