"""Method `fit` in a trial: its start, its stage loss, its resumption, its shams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.training.loop import batch_index
from mergenet_core.training.trial import Interrupted
from tests.training.tiny import MLP, Recorder, image_job, prepared, run

ARMS = ["transfer", "control", "sham", "sham-untrained", "transfer+distill"]


def fit_job(**changes: Any) -> JobSpec:
    """A trained MLP of 16 units a layer fitted into one of 12 and 10, on the training images without their labels."""
    pool = {"target__data__unlabelled_from_train": True, "source__train__steps": 60}
    return image_job(MLP, **{"arms": ARMS, "transfer__method": "fit", **pool, **changes})


@pytest.fixture
def job_folder(tmp_path: Path, roots: Roots) -> Path:
    """A job whose source is trained."""
    run(fit_job(), "source", tmp_path, roots)
    return tmp_path


def weights(folder: Path, trial: str = "transfer-0") -> dict[str, torch.Tensor]:
    return load_file(folder / "trials" / trial / "model" / "model.safetensors")


def test_a_fitted_target_knows_what_the_source_knows_before_it_has_seen_a_label(job_folder: Path, roots: Roots) -> None:
    training = prepared(fit_job(), "transfer-0", job_folder, roots)
    control = prepared(fit_job(), "control-0", job_folder, roots)
    assert control.evaluate(control.task.test)["accuracy"] < 0.6
    assert training.evaluate(training.task.test)["accuracy"] >= 0.95


@pytest.mark.parametrize("arm", ["sham", "sham-untrained"])
def test_the_fit_of_a_source_without_knowledge_teaches_nothing(arm: str, job_folder: Path, roots: Roots) -> None:
    training = prepared(fit_job(), f"{arm}-0", job_folder, roots)
    assert training.evaluate(training.task.test)["accuracy"] < 0.6


def test_the_stage_loss_is_the_distance_to_the_chosen_units_of_the_source(job_folder: Path, roots: Roots) -> None:
    training = prepared(fit_job(), "transfer-0", job_folder, roots)
    assert training.fitted is not None
    stages = training.fitted.stages
    assert stages is not None
    pool, train = training.task.unlabelled, training.task.train
    assert pool is not None
    labelled = dict(train.batch(batch_index(len(train), 8, seed=0, step=0)))
    labels_b = labelled.pop("labels")
    pool_b = batch_index(len(pool), 8, seed=0, step=0, stream=5)
    target, source = training.engine.module, stages.source.model
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(training.engine(**labelled).logits, labels_b).double()
        x, y = pool.batch(pool_b)["pixel_values"].flatten(1), stages.source.batch(pool_b)["pixel_values"].flatten(1)
        for number, (boundary, energy) in enumerate(zip(stages.boundaries, stages.energies, strict=True)):
            x, y = target.layers[number](x), source.layers[number](y)
            expected += (x - y[:, boundary.map_st.argmax(0)]).double().square().sum(1).mean() / energy
            x, y = torch.relu(x), torch.relu(y)
    training.advance()
    assert training.loss == pytest.approx(float(expected), abs=1e-6)


def test_a_fit_that_is_stopped_in_the_middle_goes_on_to_the_same_weights(job_folder: Path, roots: Roots) -> None:
    whole = run(fit_job(), "transfer-0", job_folder, roots)
    expected = weights(job_folder)
    for path in sorted((job_folder / "trials" / "transfer-0").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    stopping, going_on = Recorder({0: "stop"}), Recorder()
    with pytest.raises(Interrupted, match=r"stopped in the fit, after layers\.0"):
        run(fit_job(), "transfer-0", job_folder, roots, stopping)
    again = run(fit_job(), "transfer-0", job_folder, roots, going_on, attempt=2)
    assert [message.split(":")[0] for kind, message in going_on.events if kind == "fit.part"] == [
        "fitted layers.1",
        "fitted head",
    ]
    assert (again.last, again.final_loss) == (whole.last, whole.final_loss)
    assert all(torch.equal(W, expected[name]) for name, W in weights(job_folder).items())
    assert not (job_folder / "trials" / "transfer-0" / "fit-partial").exists()


def test_a_resumed_training_takes_its_fit_from_the_trial(job_folder: Path, roots: Roots) -> None:
    run(fit_job(), "source", job_folder / "whole", roots)
    result = run(fit_job(), "transfer+distill-0", job_folder / "whole", roots)
    with pytest.raises(Interrupted, match="stopped at step 3"):
        run(fit_job(), "transfer+distill-0", job_folder, roots, Recorder({3: "stop"}))
    resumed = Recorder()
    again = run(fit_job(), "transfer+distill-0", job_folder, roots, resumed, attempt=2)
    assert not [kind for kind, _ in resumed.events if kind == "fit.part"]
    assert (again.last, again.final_loss) == (result.last, result.final_loss)


def test_without_the_stage_loss_a_fit_is_a_start_and_nothing_else(job_folder: Path, roots: Roots) -> None:
    training = prepared(fit_job(transfer__fit={"stage_weight": 0}), "transfer-0", job_folder, roots)
    labelled = dict(training.task.train.batch(batch_index(len(training.task.train), 8, seed=0, step=0)))
    labels_b = labelled.pop("labels")
    with torch.no_grad():
        expected = float(torch.nn.functional.cross_entropy(training.engine(**labelled).logits, labels_b))
    training.advance()
    assert training.loss == pytest.approx(expected, abs=1e-6)


def test_the_adapter_of_a_fit_holds_the_maps_at_its_boundaries(job_folder: Path, roots: Roots) -> None:
    result = run(fit_job(), "transfer-0", job_folder, roots)
    saved = load_file(job_folder / "trials" / "transfer-0" / "adapter" / "adapter.safetensors")
    assert saved["0.map"].shape == (16, 12)
    assert saved["1.map"].shape == (16, 10)
    assert result.transferred_parameters == 64 * 12 + 12 + 12 * 10 + 10
    assert result.cost.extra_seconds > 0
