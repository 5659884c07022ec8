"""The arms sham, sham-untrained, sham-spectrum and distill-sham in whole trials."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergenet_core.errors import SpecInvalid
from mergenet_core.model_files.read_model import inspect_model
from mergenet_core.models.untrained_source import untrained_weights
from mergenet_core.models.write_pack import write_pack
from mergenet_core.spec.job import SHAMS
from mergenet_core.storage.paths import Roots
from mergenet_core.transfer.sham import Sham
from tests.training.tiny import MLP, Recorder, image_job, run, text_job, write_world

ARMS = ["transfer", "control", *SHAMS]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return write_world(tmp_path_factory.mktemp("world"))


def losses(job, trial: str, folder: Path, world: Roots) -> list[float]:
    run(job, trial, folder, world, recorder := Recorder())
    return list(recorder.losses.values())


@pytest.mark.parametrize("method", ["project", "lpka"])
def test_every_sham_is_a_transfer_of_its_own_and_the_same_each_time(method, world, tmp_path):
    transfer = {"method": method, "cycle": 2} | ({"gated": False} if method == "lpka" else {})
    job = text_job(arms=ARMS, transfer=transfer)
    curves = {arm: losses(job, f"{arm}-0", tmp_path / "one", world) for arm in ARMS}
    assert len({tuple(curve) for curve in curves.values()}) == len(ARMS)
    for arm in SHAMS:
        assert losses(job, f"{arm}-0", tmp_path / "again", world) == curves[arm]


@pytest.mark.parametrize("arm", SHAMS)
def test_a_pack_gives_the_sham_of_its_source_at_its_rank(arm, world, tmp_path):
    (tmp_path / "packs").mkdir()
    write_pack([world.models[0] / "source"], tmp_path / "packs" / "source.pack", rank=6, dtype="float16")
    packed = text_job(arms=ARMS, source={"model": {"pack": "source.pack"}})
    ranked = text_job(arms=ARMS, source={"model": {"path": "source"}, "rank": 6, "dtype": "float16"})
    one = losses(packed, f"{arm}-0", tmp_path / "packed", Roots((tmp_path / "packs",), world.data))
    assert one == losses(ranked, f"{arm}-0", tmp_path / "ranked", world)


def test_an_untrained_source_has_the_scale_of_its_config_and_none_of_its_weights(world):
    info, state = inspect_model(world.models[0] / "source"), torch.get_rng_state()
    first, again, other = (untrained_weights(info, "text-classification", seed, None) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "other random numbers stay as they were"
    assert {name: tuple(W.shape) for name, W in first.items()} == dict(info.shapes)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = next(name for name in first if name.endswith("word_embeddings.weight"))
    assert first[name].std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(first[name], other[name])
    norms = [W for name, W in first.items() if name.endswith("LayerNorm.weight")]
    assert all(torch.equal(W, torch.ones_like(W)) for W in norms)


@pytest.mark.parametrize("arm", ["sham-untrained", "sham-spectrum"])
def test_a_source_that_the_job_trains_has_shams(arm, tmp_path, roots):
    job = image_job(MLP, arms=ARMS)
    run(job, "source", tmp_path, roots)
    named = image_job(MLP, arms=ARMS, transfer={"method": "project"})
    assert losses(named, f"{arm}-0", tmp_path, roots) != losses(named, "transfer-0", tmp_path, roots)


DISTILLING = {"arms": ["transfer", "control", "distill", "distill-sham"], "transfer": {"method": "project"}}


def test_the_sham_of_a_distillation_has_a_teacher_with_the_source_s_shuffled_weights(tmp_path, roots):
    job = image_job(MLP, **DISTILLING)
    run(job, "source", tmp_path, roots)
    curves = {arm: losses(job, f"{arm}-0", tmp_path, roots) for arm in ("distill", "distill-sham")}
    assert curves["distill"] != curves["distill-sham"]
    source = load_file(tmp_path / "source" / "model.safetensors")
    shuffled = {name: Sham("shuffled", 0).weight(W, name) for name, W in source.items()}
    save_file(shuffled, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "source" / "manifest.json").unlink()
    given = image_job(MLP, **DISTILLING, source={"model": {"path": "source"}})
    found = losses(given, "distill-0", tmp_path / "given", Roots((tmp_path,), roots.data))
    assert found == curves["distill-sham"]


def test_the_sham_of_a_distillation_fine_tunes_its_own_teacher(tmp_path, world):
    job = text_job(arms=["transfer", "control", "distill", "distill-sham"])
    curves = {arm: losses(job, f"{arm}-0", tmp_path, world) for arm in ("distill", "distill-sham")}
    assert curves["distill"] != curves["distill-sham"]
    assert sorted(path.name for path in (tmp_path / "teachers").iterdir()) == ["0", "0-sham"]


def test_a_source_in_training_has_no_untrained_sham():
    with pytest.raises(
        SpecInvalid, match=r"sham-untrained takes the place of a trained source.*take sham or sham-spec"
    ):
        image_job(
            MLP,
            arms=["transfer", "control", "sham-untrained"],
            source__mode="joint",
            source__train__steps=6,
            transfer={"method": "anchored"},
        )
