"""A target that learns from states of its source's training: kept by the job, or in a pack of checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mergenet_core.errors import CheckpointInvalid, SpecInvalid
from mergenet_core.models.write_pack import write_pack
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.storage.paths import JobFolder, Roots
from mergenet_core.training.trial import Interrupted
from tests.training.tiny import MLP, Recorder, flip_last_byte, image_job, run, text_job, write_bert

LEARNED = {"method": "anchored", "cycle": 1, "stop_at": 1.0}


def along(method: str = "anchored", states: int = 3, **changes: object):
    return image_job(
        MLP,
        source__mode="trajectory",
        source__states=states,
        transfer=LEARNED | {"method": method} | ({"width": 8, "heads": 2, "gated": False} if method == "lpka" else {}),
        **changes,
    )


def losses(job, folder: Path, roots: Roots, trial: str = "transfer-0") -> list[float]:
    run(job, trial, folder, roots, recorder := Recorder())
    return list(recorder.losses.values())


@pytest.mark.parametrize("method", ["anchored", "lpka"])
def test_the_target_learns_from_one_state_after_the_other(method: str, tmp_path: Path, roots: Roots) -> None:
    job = along(method)
    run(job, "source", tmp_path, roots)
    states = [JobFolder(tmp_path).source_state(step) for step in job.source.kept_steps]
    assert sorted(JobFolder(tmp_path).source_states.iterdir()) == states
    assert len(states) == 3
    whole = losses(job, tmp_path, roots)
    # a state changes the losses from its first transfer on, and not before: six transfers, two for each state
    shutil.rmtree(tmp_path / "trials")
    shutil.copytree(states[0], states[2], dirs_exist_ok=True)
    changed = losses(job, tmp_path, roots)
    assert whole[:4] == changed[:4]
    assert whole[4:] != changed[4:]


def test_a_damaged_state_of_the_source_is_refused(tmp_path: Path, roots: Roots) -> None:
    job = along()
    run(job, "source", tmp_path, roots)
    flip_last_byte(JobFolder(tmp_path).source_state(job.source.kept_steps[0]) / "model.safetensors")
    with pytest.raises(CheckpointInvalid, match=r"model\.safetensors does not match its hash"):
        run(job, "transfer-0", tmp_path, roots)


@pytest.mark.parametrize("arm", ["transfer", "copy", "distill"])
def test_a_damaged_source_that_the_job_trained_is_refused(arm: str, tmp_path: Path, roots: Roots) -> None:
    job = image_job(MLP, arms=["transfer", "control", "copy", "distill"])
    run(job, "source", tmp_path, roots)
    run(job, "control-0", tmp_path, roots)
    flip_last_byte(JobFolder(tmp_path).source / "model.safetensors")
    with pytest.raises(CheckpointInvalid, match=r"source: model\.safetensors does not match its hash"):
        run(job, f"{arm}-0", tmp_path, roots)


def test_the_sham_of_a_trajectory_is_another_curve(tmp_path: Path, roots: Roots) -> None:
    job = along(arms=["transfer", "control", "sham"])
    run(job, "source", tmp_path, roots)
    assert losses(job, tmp_path, roots) != losses(job, tmp_path, roots, "sham-0")


@pytest.mark.parametrize("method", ["anchored", "lpka"])
def test_a_run_that_was_stopped_resumes_bit_for_bit(method: str, tmp_path: Path, roots: Roots) -> None:
    job = along(method)
    run(job, "source", tmp_path, roots)
    shutil.copytree(tmp_path, tmp_path / "parts")
    whole = run(job, "transfer-0", tmp_path, roots)
    with pytest.raises(Interrupted):
        run(job, "transfer-0", tmp_path / "parts", roots, Recorder({5: "stop"}))
    assert run(job, "transfer-0", tmp_path / "parts", roots, attempt=2).final_loss == whole.final_loss


def test_a_source_that_was_stopped_and_resumed_keeps_the_same_states(tmp_path: Path, roots: Roots) -> None:
    job = along()
    run(job, "source", tmp_path / "whole", roots)
    with pytest.raises(Interrupted):
        run(job, "source", tmp_path / "parts", roots, Recorder({3: "stop"}))
    run(job, "source", tmp_path / "parts", roots, attempt=2)
    for step in job.source.kept_steps:
        first, second = (
            (JobFolder(tmp_path / name).source_state(step) / "model.safetensors").read_bytes()
            for name in ("whole", "parts")
        )
        assert first == second


def test_a_pack_of_equal_states_is_a_frozen_source(tmp_path: Path, roots: Roots) -> None:
    source = roots.models[0] / "source"
    for name, count in (("one", 1), ("two", 2)):
        write_pack([source] * count, roots.models[0] / f"{name}.pack", rank=6)
    frozen = text_job(source={"model": {"pack": "one.pack"}}, transfer=LEARNED)
    moving = text_job(source={"model": {"pack": "two.pack"}, "mode": "trajectory"}, transfer=LEARNED)
    assert losses(frozen, tmp_path / "frozen", roots) == losses(moving, tmp_path / "moving", roots)


def test_the_states_of_a_pack_are_used_oldest_first(tmp_path: Path, roots: Roots) -> None:
    source, other = roots.models[0] / "source", roots.models[0] / "other"
    write_bert(other, initializer_range=0.3)
    for name, folders in (("old-new", [source, other]), ("new-old", [other, source])):
        write_pack(folders, roots.models[0] / f"{name}.pack", rank=6)
    curves = [
        losses(
            text_job(source={"model": {"pack": f"{name}.pack"}, "mode": "trajectory"}, transfer=LEARNED),
            tmp_path / name,
            roots,
        )
        for name in ("old-new", "new-old")
    ]
    assert curves[0][0] != curves[1][0]


def test_a_pack_of_one_checkpoint_is_no_trajectory(tmp_path: Path, roots: Roots) -> None:
    write_pack([roots.models[0] / "source"], roots.models[0] / "one.pack", rank=6)
    job = text_job(source={"model": {"pack": "one.pack"}, "mode": "trajectory"}, transfer=LEARNED)
    with pytest.raises(SpecInvalid, match="give mergenet pack several folders"):
        make_plan(job, roots, tmp_path, [])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"transfer__method": "project"}, "transfer.method project reads it once"),
        ({"source__states": 2000}, "less than or equal to 1000"),
        ({"source__states": 900}, "source.states 900 is more than source.train.steps"),
        ({"transfer__back_cycle": 2}, r"give source\.mode joint"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecInvalid, match=sentence):
        image_job(MLP, **{"source__mode": "trajectory", "transfer": LEARNED, **changes})


def test_a_source_that_is_never_trained_has_no_trajectory() -> None:
    with pytest.raises(SpecInvalid, match="a trajectory needs a training"):
        text_job(source={"model": {"path": "source"}, "mode": "trajectory"}, transfer=LEARNED)
