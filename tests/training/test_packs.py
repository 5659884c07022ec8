"""A job from a pack, on a host that never sees the source, has the same curve as the source at the pack's rank."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mergenet_core.errors import PairingRefused, PathRefused, SpecInvalid
from mergenet_core.models.write_pack import write_pack
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.storage.paths import Roots
from tests.training.tiny import Recorder, run, text_job, write_world

RANK = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def elsewhere(world: Roots, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """A host with the same data and only packs of the source."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for dtype in ("float32", "float16", "int8"):
        write_pack([world.models[0] / "source"], folder / f"{dtype}.pack", rank=RANK, dtype=dtype)
    return Roots((folder,), world.data)


@pytest.mark.parametrize(
    ("method", "arm", "dtype"),
    [
        ("project", "transfer", "float32"),
        ("project", "transfer", "float16"),
        ("project", "copy", "int8"),
        ("project", "sham", "float32"),
        ("anchored", "transfer", "float32"),
        ("lpka", "transfer", "float16"),
        ("lpka", "transfer", "int8"),
        ("lpka", "sham", "float32"),
        ("lpka-raw", "transfer", "float32"),
    ],
)
def test_a_pack_gives_the_curve_of_its_source_bit_for_bit(world, elsewhere, tmp_path, method, arm, dtype):
    changes = {"transfer": {"method": method, "cycle": 2}, "arms": ["transfer", "control", "sham", "copy"]}
    if "lpka" in method:
        changes["transfer"] |= {"gated": False} if method == "lpka" else {}
    curves = {}
    for name, source, roots in (
        ("pack", {"model": {"pack": f"{dtype}.pack"}}, elsewhere),
        ("ranked", {"model": {"path": "source"}, "rank": RANK, "dtype": dtype}, world),
        ("whole", {"model": {"path": "source"}}, world),
    ):
        recorder = Recorder()
        run(text_job(**changes, source=source), f"{arm}-0", tmp_path / name, roots, recorder)
        curves[name] = recorder.losses
    assert curves["pack"] == curves["ranked"]
    assert curves["whole"] != curves["pack"]


def test_a_rank_that_keeps_every_weight_whole_is_the_source(world, tmp_path):
    curves = []
    for name, source in (
        ("whole", {"model": {"path": "source"}}),
        ("ranked", {"model": {"path": "source"}, "rank": 99}),
    ):
        recorder = Recorder()
        run(text_job(source=source), "transfer-0", tmp_path / name, world, recorder)
        curves.append(recorder.losses)
    assert curves[0] == curves[1]


def test_a_control_of_a_pack_is_the_control(world, elsewhere, tmp_path):
    curves = []
    for name, model, roots in (("a", {"pack": "float32.pack"}, elsewhere), ("b", {"path": "source"}, world)):
        recorder = Recorder()
        run(text_job(source={"model": model}), "control-0", tmp_path / name, roots, recorder)
        curves.append(recorder.losses)
    assert curves[0] == curves[1]


def test_the_plan_pairs_a_pack_as_its_source_at_no_higher_rank(world, elsewhere, tmp_path):
    lpka = {"method": "lpka"}
    plans = [
        make_plan(text_job(source={"model": model}, transfer=lpka), roots, tmp_path, [])
        for model, roots in (({"path": "source"}, world), ({"pack": "float32.pack"}, elsewhere))
    ]
    assert [pair.target for pair in plans[0].pairing.pairs] == [pair.target for pair in plans[1].pairing.pairs]
    assert plans[0].estimate == plans[1].estimate
    job = text_job(source={"model": {"path": "source"}, "rank": 2}, transfer=lpka)
    assert plans[0].pairing.rank > 2
    assert {pair.rank for pair in make_plan(job, world, tmp_path, []).pairing.pairs} == {2}
    with pytest.raises(PairingRefused, match=r"transfer\.rank 8 is above the rank that the source is stored at, 6"):
        make_plan(
            text_job(source={"model": {"pack": "float32.pack"}}, transfer={"rank": 8, **lpka}), elsewhere, tmp_path, []
        )


def test_a_given_tokenizer_replaces_that_of_the_pack(world, elsewhere, tmp_path):
    folder = elsewhere.models[0] / "words"
    if not folder.exists():
        folder.mkdir()
        shutil.copy(world.models[0] / "source" / "tokenizer.json", folder)
        shutil.copy(world.models[0] / "source" / "tokenizer_config.json", folder)
    job = text_job(source={"model": {"pack": "float32.pack", "tokenizer": "words"}})
    make_plan(job, elsewhere, tmp_path, [])
    run(job, "transfer-0", tmp_path / "job", elsewhere)
    assert not (tmp_path / "job" / "processor").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target__model": {"pack": "p"}}, "a pack is a source's"),
        ({"source": {"model": {"pack": "p"}}, "arms": ["transfer", "control", "distill"]}, "a pack cannot be a"),
        ({"source": {"model": {"pack": "p"}, "rank": 4}}, "a rank of its own"),
        ({"source": {"model": {"pack": "p", "path": "source"}}}, "exactly one of"),
        ({"source": {"model": {"path": "source"}, "dtype": "float16"}}, "rank and dtype are for a frozen source"),
        (
            {"transfer": {"method": "lpka-raw"}, "resources": {"devices": 2, "strategy": "fsdp2"}},
            "lpka-raw needs whole weights, fsdp2 spreads them",
        ),
        (
            {"transfer": {"method": "lpka-raw"}, "resources": {"devices": 2, "strategy": "zero3"}},
            "lpka-raw needs whole weights, zero3 spreads them",
        ),
    ],
)
def test_impossible_settings_of_packs_and_raw_adapters_are_refused(changes, match):
    with pytest.raises(SpecInvalid, match=match):
        text_job(**changes)


def test_a_file_is_not_a_model_and_a_folder_is_not_a_pack(world, elsewhere, tmp_path: Path):
    with pytest.raises(PathRefused, match=r"source.model.path: 'float32.pack' is a file; .* as source.model.pack"):
        make_plan(text_job(source={"model": {"path": "float32.pack"}}), elsewhere, tmp_path, [])
    with pytest.raises(PathRefused, match=r"source.model.pack: 'source' is a folder; .*mergenet pack"):
        make_plan(text_job(source={"model": {"pack": "source"}}), world, tmp_path, [])
