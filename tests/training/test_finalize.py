"""The artifact: the chosen trial's model, the report, and a manifest with every file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mergenet_core.errors import CheckpointInvalid
from mergenet_core.records.job import Candidate, Job, Trial
from mergenet_core.records.record import now
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.storage.published_folder import sha256, verify
from mergenet_core.training.finalize import finalize
from tests.training.tiny import run, text_job


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, roots: Roots) -> tuple[Path, Job]:
    folder = tmp_path_factory.mktemp("job")
    trials = []
    for name in ("transfer-0", "control-0", "transfer-1", "control-1"):
        arm, seed = name.split("-")
        result = run(text_job(seeds=[0, 1]), name, folder, roots)
        validation = {"transfer-1": 0.9}.get(name, 0.5)
        result = result.model_copy(update={"last": {"test": result.last["test"], "validation": validation}})
        trials.append(Trial(id=name, kind="arm", arm=arm, seed=int(seed), state="succeeded", result=result))
    job = Job(
        id="j1", name="tiny", owner="me", state="finalizing", code="x", reason="x", trials=tuple(trials),
        created_at=now(), updated_at=now(),
    )  # fmt: skip
    return folder, job


def test_the_artifact_is_complete_and_lists_what_it_was_made_from(finished: tuple[Path, Job], roots: Roots) -> None:
    path, record = finished
    folder = JobFolder(path)
    assert finalize(text_job(seeds=[0, 1]), record, folder, roots, attempt=1) == "artifact"
    manifest = verify(folder.artifact)
    roles = {entry.path: entry.role for entry in manifest.files}
    assert roles["model/model.safetensors"] == "model"
    assert roles["model/config.json"] == "model"
    assert roles["model/tokenizer.json"] == "tokenizer"
    assert roles["adapter.safetensors"] == roles["adapter.json"] == roles["pairing.json"] == "adapter"
    assert (roles["report.json"], roles["README.md"], roles["job.json"]) == ("report", "card", "spec")
    (document,) = [entry for entry in manifest.files if entry.path == "job.json"]
    assert manifest.about["spec_sha256"] == document.sha256 == sha256(folder.artifact / "job.json")
    assert manifest.about["trial"] == "transfer-1", "the seed that is best on validation"
    assert set(manifest.about["inputs"]) == {"data", "source"}
    assert len(manifest.about["inputs"]["source"]["model.safetensors"]) == 64
    assert len(manifest.about["code"]["sha256"]) == 64
    chosen = load_file(path / "trials" / "transfer-1" / "model" / "model.safetensors")
    assert load_file(folder.artifact / "model" / "model.safetensors").keys() == chosen.keys()
    assert json.loads((folder.artifact / "report.json").read_text())["chosen"] == "transfer-1"
    card = (folder.artifact / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "| control |" in card


def test_where_the_control_was_better_the_artifact_is_its_model_and_the_card_reports_it(
    finished: tuple[Path, Job], roots: Roots
) -> None:
    path, record = finished
    candidate, better = Candidate(method="project", include="all"), {"control-0": 0.95}
    trials = [
        trial.model_copy(
            update={
                "candidate": candidate if trial.arm == "transfer" else None,
                "result": trial.result.model_copy(
                    update={"last": trial.result.last | {"validation": better.get(trial.id, 0.5)}}
                ),
            }
        )
        for trial in record.trials
        if trial.result is not None
    ]
    folder = JobFolder(path)
    finalize(text_job(seeds=[0, 1]), record.model_copy(update={"trials": tuple(trials)}), folder, roots, attempt=4)
    manifest = verify(folder.artifact)
    assert manifest.about["trial"] == "control-0"
    assert not {"adapter.safetensors", "pairing.json"} & {entry.path for entry in manifest.files}
    card = (folder.artifact / "README.md").read_text()
    assert "without a transfer from\n`source`. It is the control's model: no transfer is significantly ahead" in card
    assert "adapter.safetensors" not in card


def test_a_damaged_model_makes_no_artifact(finished: tuple[Path, Job], roots: Roots) -> None:
    path, record = finished
    folder = JobFolder(path)
    finalize(text_job(seeds=[0, 1]), record, folder, roots, attempt=2)
    with (path / "trials" / "transfer-1" / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"flip")
    with pytest.raises(CheckpointInvalid, match=r"model\.safetensors does not match its hash"):
        finalize(text_job(seeds=[0, 1]), record, folder, roots, attempt=3)
    verify(folder.artifact)
