"""A pack stands for its source: the same facts, the weights of its factors; nothing else is taken for one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergenet_core.errors import ModelRefused, PathRefused
from mergenet_core.model_files.knowledge_pack import MANIFEST_KEY, read_pack, unpack
from mergenet_core.model_files.read_model import inspect_model
from mergenet_core.models.factored_source import at_rank, open_pack
from mergenet_core.models.saved_tensors import SourceWeights
from mergenet_core.models.stored_factors import compose, to_stored
from mergenet_core.models.write_pack import write_pack
from mergenet_core.transfer.reencode import factorize
from mergenet_core.transfer.views import view_of
from tests.training.tiny import write_bert

LABELS = ("fruit", "music", "tools")
MATRIX = "bert.encoder.layer.1.attention.self.key.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "source"
    write_bert(folder, LABELS)
    return folder


@pytest.fixture
def pack(source: Path, tmp_path: Path) -> Path:
    write_pack([source], tmp_path / "small.safetensors", rank=4)
    return tmp_path / "small.safetensors"


def test_a_pack_pairs_as_its_source_does(source, pack):
    assert inspect_model(pack) == inspect_model(source)
    assert inspect_model(pack).labels == LABELS


def test_its_matrices_are_the_best_of_its_rank_and_its_vectors_the_source_s(source, pack):
    weights, packed = SourceWeights(source), open_pack(pack)
    assert list(packed) == list(read_pack(pack).tensors)
    assert set(packed) == set(weights)
    assert len(packed) == len(weights)
    for name, W in weights.items():
        if W.ndim < 2:
            assert torch.equal(packed[name], W)
            continue
        values = torch.linalg.svdvals(W.double())
        tensor = read_pack(pack).tensors[name]
        if tensor.rank is None:
            assert torch.equal(packed[name], W)
        else:
            assert tensor.rank == min(4, *W.shape)
            left = float((values[tensor.rank :] ** 2).sum())
            assert float((W - packed[name]).double().square().sum()) == pytest.approx(left, rel=0.02)
            assert tensor.energy[0] == pytest.approx(1 - left / float((values**2).sum()), abs=0.01)


def test_its_factors_are_those_of_the_re_encoding(source, pack):
    B, A = open_pack(pack).factors(MATRIX)
    assert torch.equal(B @ A, open_pack(pack)[MATRIX])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = factorize(view_of(SourceWeights(source)[MATRIX]), 4)
    torch.set_num_threads(threads)
    assert torch.equal(B, expected[0])
    assert torch.equal(A, expected[1])
    assert open_pack(pack).factors("bert.embeddings.LayerNorm.weight") is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_source_at_a_rank_is_its_pack_bit_for_bit_with_any_number_of_threads(source, tmp_path, dtype):
    write_pack([source], tmp_path / "p.safetensors", rank=5, dtype=dtype)
    packed = open_pack(tmp_path / "p.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ranked = at_rank(SourceWeights(source), 5, dtype)
        assert all(torch.equal(packed[name], ranked[name]) for name in packed)
        assert not torch.equal(packed[MATRIX], SourceWeights(source)[MATRIX])
    finally:
        torch.set_num_threads(threads)


def test_threads_do_not_change_a_bit_of_a_matrix_so_large_that_they_would():
    W = torch.randn(1536, 384, generator=torch.Generator().manual_seed(0))
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            stored = to_stored(W, 96, "float32")
            made.append((*stored, compose(stored, (1536, 384))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))


def test_half_precision_halves_the_factors_and_keeps_vectors(source, tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        write_pack([source], tmp_path / dtype, rank=4, dtype=dtype)
        sizes[dtype] = sum(part.numel() * part.element_size() for part in load_file(tmp_path / dtype).values())
    vectors = sum(4 * W.numel() for W in SourceWeights(source).values() if W.ndim < 2)
    assert sizes["float16"] - vectors == (sizes["float32"] - vectors) / 2


def test_int8_keeps_what_the_factors_keep_within_a_thousandth(source, tmp_path):
    for dtype in ("float32", "int8"):
        write_pack([source], tmp_path / dtype, rank=8, dtype=dtype)
    exact, rounded = (read_pack(tmp_path / dtype).tensors for dtype in ("float32", "int8"))
    for name, tensor in exact.items():
        assert rounded[name].rank == tensor.rank
        assert rounded[name].energy[0] == pytest.approx(tensor.energy[0], abs=1e-3)
    B, A = open_pack(tmp_path / "int8").factors(MATRIX)
    assert torch.equal(B @ A, open_pack(tmp_path / "int8")[MATRIX])
    assert load_file(tmp_path / "int8")[f"0/{MATRIX}/B"].dtype == torch.int8


def test_a_rank_beyond_the_weights_keeps_the_source_as_it_is(source, tmp_path):
    write_pack([source], tmp_path / "p", rank=1000)
    packed = open_pack(tmp_path / "p")
    assert all(torch.equal(packed[name], W) for name, W in SourceWeights(source).items())


def test_a_source_in_shards_makes_the_same_pack(source, pack, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, own in parts.items():
        save_file({key: weights[key] for key in own}, folder / name)
    index = {"weight_map": {key: name for name, own in parts.items() for key in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_pack([folder], tmp_path / "p", rank=4)
    one, other = open_pack(pack), open_pack(tmp_path / "p")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(read_pack(tmp_path / "p").source[0]) == ["a.safetensors", "b.safetensors"]


def test_it_carries_the_tokenizer(source, pack, tmp_path):
    unpack(pack, tmp_path / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "tokenizer" / name).read_text()) == json.loads((source / name).read_text())
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_series_keeps_every_checkpoint_and_ends_with_the_last(source, tmp_path):
    later = tmp_path / "later"
    shutil.copytree(source, later)
    weights = load_file(source / "model.safetensors")
    save_file({name: 2 * W for name, W in weights.items()}, later / "model.safetensors")
    write_pack([source, later], tmp_path / "p", rank=4)
    packed = open_pack(tmp_path / "p")
    assert packed.checkpoints == 2
    assert torch.allclose(packed.at(1)[MATRIX], 2 * packed.at(0)[MATRIX])
    assert torch.equal(packed[MATRIX], packed.at(1)[MATRIX])
    assert torch.equal(packed.at(7)[MATRIX], packed.at(1)[MATRIX])
    write_pack([source], tmp_path / "alone", rank=4)
    assert torch.equal(open_pack(tmp_path / "alone")[MATRIX], packed.at(0)[MATRIX])


def test_checkpoints_of_unlike_models_are_refused(source, tmp_path):
    write_bert(tmp_path / "other", LABELS, hidden_size=16)
    with pytest.raises(ModelRefused, match="no checkpoint of the same model"):
        write_pack([source, tmp_path / "other"], tmp_path / "p", rank=4)
    assert not (tmp_path / "p").exists()


def test_numbers_beyond_half_precision_are_refused(source, tmp_path):
    large = tmp_path / "large"
    shutil.copytree(source, large)
    weights = load_file(source / "model.safetensors")
    save_file({name: 1e12 * W for name, W in weights.items()}, large / "model.safetensors")
    with pytest.raises(ModelRefused, match="as float16 holds NaN or infinity"):
        write_pack([large], tmp_path / "p", rank=4, dtype="float16")


def rewritten(pack: Path, **changes: Any) -> Path:
    """A copy of a pack with its manifest or its tensors changed."""
    with safe_open(pack, framework="pt") as file:
        texts = file.metadata()
    manifest = json.loads(texts[MANIFEST_KEY]) | {key: value for key, value in changes.items() if key != "tensors"}
    tensors = load_file(pack) | changes.get("tensors", {})
    save_file(tensors, pack.with_name("changed"), metadata=texts | {MANIFEST_KEY: json.dumps(manifest)})
    return pack.with_name("changed")


def test_wrong_files_are_refused_with_what_to_do(source, pack, tmp_path):
    with pytest.raises(ModelRefused, match="no pack: it has no manifest"):
        open_pack(source / "model.safetensors")
    with pytest.raises(ModelRefused, match="a pack of format 2, this code reads 1; pack the source again"):
        open_pack(rewritten(pack, version=2))
    with pytest.raises(ModelRefused, match=r"manifest cannot be read \(rank\)"):
        open_pack(rewritten(pack, rank="four"))
    (tmp_path / "torn").write_bytes(pack.read_bytes()[:-100])
    with pytest.raises(ModelRefused, match="it is incomplete"):
        open_pack(tmp_path / "torn")
    (tmp_path / "text").write_text("not a pack at all")
    with pytest.raises(ModelRefused, match="not a whole safetensors file"):
        open_pack(tmp_path / "text")


def test_a_pack_is_not_written_into_a_folder_that_does_not_exist(source, tmp_path):
    with pytest.raises(PathRefused, match=r"there is no folder .*no/such to write the pack into"):
        write_pack([source], tmp_path / "no" / "such" / "pack", rank=4)


def test_tensors_that_are_not_the_manifest_s_are_refused(pack):
    for key, shape in ((f"0/{MATRIX}/B", (32, 3)), ("0/stowaway", (2,))):
        with pytest.raises(ModelRefused, match=f"changed: {key} is .*pack the source again"):
            open_pack(rewritten(pack, tensors={key: torch.zeros(shape)}))


def test_a_weight_that_is_not_finite_is_refused_when_it_is_read(pack):
    broken = open_pack(rewritten(pack, tensors={f"0/{MATRIX}/A": torch.full((4, 32), torch.nan)}))
    with pytest.raises(ModelRefused, match=f"0/{MATRIX}/A holds NaN"):
        broken[MATRIX]


def test_a_pack_with_code_of_its_own_is_refused(pack):
    config = read_pack(pack).config | {"auto_map": {"AutoModel": "code.Model"}}
    with pytest.raises(ModelRefused, match="code of its own"):
        inspect_model(rewritten(pack, config=config))
