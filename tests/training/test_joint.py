"""A source that learns together with the target, one-way and two-way."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergenet_core.errors import CheckpointInvalid, SpecInvalid
from mergenet_core.planning.trials import trials
from mergenet_core.records.job import Job, Trial, TrialResult
from mergenet_core.records.record import now
from mergenet_core.spec.job import JobSpec
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.storage.published_folder import verify
from mergenet_core.training.finalize import finalize
from mergenet_core.training.trial import Interrupted
from tests.training.tiny import MLP, Recorder, flip_last_byte, image_job, run, text_job

SOURCE_TRAIN = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3}


def joint_text(**changes: object) -> JobSpec:
    data = {"train": "train.jsonl", "test": "test.jsonl", "max_length": 16}
    source = {"model": {"path": "source"}, "mode": "joint", "data": data, "train": SOURCE_TRAIN}
    learned = {"method": "anchored", "cycle": 2, "stop_at": 1.0}
    return text_job(**{"source": source, "transfer": learned, **changes})


def joint_image(**changes: object) -> JobSpec:
    return image_job(
        MLP,
        source__mode="joint",
        source__train=SOURCE_TRAIN,
        transfer={"method": "lpka", "cycle": 2, "stop_at": 1.0, "width": 8, "heads": 2, "gated": False},
        **changes,
    )


@pytest.mark.parametrize("make", [joint_text, joint_image])
def test_the_source_learns_together_with_the_target_and_the_target_from_it(make, tmp_path: Path, roots: Roots) -> None:
    job = make()
    assert "source" not in {trial.id for trial in trials(job)}
    found = {arm: run(job, f"{arm}-0", tmp_path, roots) for arm in ("transfer", "sham", "control")}
    assert found["transfer"].source.keys() == {"accuracy"}
    assert found["control"].source == {}
    assert found["transfer"].cost.source_seconds > 0 == found["control"].cost.source_seconds
    assert len({result.final_loss for result in found.values()}) == 3


@dataclass(frozen=True)
class TwoWay:
    """A two-way job whose transfer and control were trained."""

    job: JobSpec
    folder: Path
    transfer: TrialResult
    control: TrialResult


@pytest.fixture(scope="module", params=[joint_text, joint_image], ids=["text", "image"])
def two_way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, roots: Roots) -> TwoWay:
    job, folder = request.param(transfer__back_cycle=3), tmp_path_factory.mktemp("two-way")
    return TwoWay(job, folder, *(run(job, f"{arm}-0", folder, roots) for arm in ("transfer", "control")))


def test_a_joint_run_that_was_stopped_resumes_bit_for_bit(two_way: TwoWay, tmp_path: Path, roots: Roots) -> None:
    job, whole = two_way.job, two_way.transfer
    with pytest.raises(Interrupted):
        run(job, "transfer-0", tmp_path, roots, Recorder({3: "stop"}))
    again = run(job, "transfer-0", tmp_path, roots, attempt=2)
    assert (again.final_loss, again.source) == (whole.final_loss, whole.source)
    for part in ("model", "source-model"):
        first, second = (
            load_file(folder / "trials" / "transfer-0" / part / "model.safetensors")
            for folder in (two_way.folder, tmp_path)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_two_way_source_changes_with_the_target(tmp_path: Path, roots: Roots) -> None:
    sources = {}
    for name, change in (("one", {}), ("two", {"transfer__back_cycle": 2})):
        job = joint_text(transfer={"method": "anchored", "cycle": 2, "stop_at": 1.0}, **change)
        run(job, "transfer-0", tmp_path / name, roots, recorder := Recorder())
        sources[name] = load_file(next((tmp_path / name).rglob("source-model.safetensors")), device="cpu")[
            "classifier.weight"
        ]
        assert recorder.losses
    assert not torch.equal(sources["one"], sources["two"])
    control = run(joint_text(transfer__back_cycle=2), "control-0", tmp_path / "control", roots)
    assert control.source, "a control of a two-way job trains the source without a transfer, for comparison"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"transfer__method": "project"}, "reads it once; take anchored or lpka"),
        ({"source__train__steps": 5}, "must be train.steps 6"),
        ({"arms": ["transfer", "control", "distill"]}, "leave them out with mode joint"),
        ({"source__data": None, "source__train": None}, "give source.data and source.train"),
    ],
)
def test_a_joint_source_with_impossible_settings_is_refused(changes, sentence) -> None:
    with pytest.raises(SpecInvalid, match=sentence):
        joint_text(**changes)


def test_a_frozen_source_cannot_have_a_back_cycle() -> None:
    with pytest.raises(SpecInvalid, match=r"give source\.mode joint"):
        text_job(transfer__back_cycle=2)


def test_a_two_way_artifact_has_both_models_and_is_refused_if_one_is_damaged(
    two_way: TwoWay, tmp_path: Path, roots: Roots
) -> None:
    job = two_way.job
    shutil.copytree(two_way.folder, tmp_path, dirs_exist_ok=True)
    results = {"transfer": two_way.transfer, "control": two_way.control}
    done = [
        Trial(id=f"{arm}-0", kind="arm", arm=arm, state="succeeded", result=result) for arm, result in results.items()
    ]
    record = Job(
        id="j1", name="tiny", owner="me", state="finalizing", code="x", reason="x", trials=tuple(done),
        created_at=now(), updated_at=now(),
    )  # fmt: skip
    folder = JobFolder(tmp_path)
    finalize(job, record, folder, roots, attempt=1)
    manifest = verify(folder.artifact)
    assert {"model/model.safetensors", "source-model/model.safetensors"} <= {entry.path for entry in manifest.files}
    given = job.source.model.path is not None
    assert ("source" in manifest.about["inputs"]) == given, (
        "the hash of the weights that the source began from, if they were given"
    )
    flip_last_byte(tmp_path / "trials" / manifest.about["trial"] / "source-model" / "model.safetensors")
    with pytest.raises(CheckpointInvalid, match=r"source-model: model\.safetensors does not match its hash"):
        finalize(job, record, folder, roots, attempt=2)
    verify(folder.artifact)
