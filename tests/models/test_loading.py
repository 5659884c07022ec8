"""What is loaded is what was saved, and what could harm is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergenet_core.errors import ModelRefused, PathRefused
from mergenet_core.model_files.model_info import Vocabulary
from mergenet_core.model_files.read_model import inspect_model
from mergenet_core.models.describe import count_parameters, model_info
from mergenet_core.models.loading import build, folder_of, load_target, load_trained
from mergenet_core.models.processors import load_tokenizer, processor_folder
from mergenet_core.models.saved_tensors import SourceWeights
from mergenet_core.spec.job import ModelSpec
from mergenet_core.storage.paths import Roots
from tests.training.tiny import BERT, write_bert

TEXT = "text-classification"
LABELS = ("fruit", "music", "tools")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    folder = tmp_path_factory.mktemp("models")
    write_bert(folder / "encoder")
    write_bert(folder / "classifier", LABELS)
    return Roots((folder,), ())


def spoiled(world: Roots, tmp_path: Path, **config: Any) -> Path:
    folder = tmp_path / "spoiled"
    shutil.copytree(world.models[0] / "encoder", folder)
    document = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def test_from_scratch_the_seed_decides_the_weights(world: Roots) -> None:
    spec = ModelSpec(config={"model_type": "bert", **BERT})

    def made(seed: int) -> dict[str, torch.Tensor]:
        return load_target(spec, TEXT, LABELS, world, seed=seed, overrides={"vocab_size": 26}).state_dict()

    first, again, other = made(1), made(1), made(2)
    assert first["bert.embeddings.word_embeddings.weight"].shape == (26, 16)
    assert first["classifier.weight"].shape == (3, 16)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_trained_head_is_kept_for_its_own_labels_only(world: Roots) -> None:
    folder = world.models[0] / "classifier"
    saved = load_file(folder / "model.safetensors")
    kept = load_trained(folder, TEXT, LABELS, seed=0).state_dict()
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    for labels in (("fruit", "tools", "music"), ("yes", "no")):
        anew = load_trained(folder, TEXT, labels, seed=0).state_dict()
        assert anew["classifier.weight"].shape == (len(labels), 32)
        assert not torch.equal(saved["classifier.weight"][:2], anew["classifier.weight"][:2])
        name = "bert.encoder.layer.0.output.dense.weight"
        assert torch.equal(saved[name], anew[name])


def test_the_source_is_a_state_dict_in_single_precision(world: Roots, tmp_path: Path) -> None:
    folder = spoiled(world, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors")
    found = SourceWeights(folder)
    assert found.keys() == weights.keys()
    assert {weight.dtype for weight in found.values()} == {torch.float32}


def test_facts_in_memory_are_those_on_disk(world: Roots) -> None:
    folder = world.models[0] / "classifier"
    model = load_trained(folder, TEXT, LABELS, seed=0)
    found, read = model_info(model, vocabulary=Vocabulary("v"), labels=LABELS), inspect_model(folder)
    assert found.shapes == read.shapes
    assert found.labels == read.labels
    assert found.config["hidden_size"] == read.config["hidden_size"]
    assert count_parameters(model) == sum(weight.numel() for weight in model.parameters())


def poison(world: Roots, tmp_path: Path) -> Path:
    folder = spoiled(world, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_nan_in_a_weight_is_refused_by_name(world: Roots, tmp_path: Path) -> None:
    folder = poison(world, tmp_path)
    with pytest.raises(ModelRefused, match=r"embeddings\.LayerNorm\.weight holds NaN"):
        dict(SourceWeights(folder))
    with pytest.raises(ModelRefused, match=r"embeddings\.LayerNorm\.weight holds NaN"):
        load_trained(folder, TEXT, LABELS, seed=0)


def test_pickled_weights_are_refused_with_the_way_out(world: Roots, tmp_path: Path) -> None:
    folder = spoiled(world, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for load in (SourceWeights, lambda folder: load_trained(folder, TEXT, LABELS, seed=0)):
        with pytest.raises(ModelRefused, match=r"pickled weights only \(pytorch_model\.bin\)"):
            load(folder)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
        ({"model_type": "evil"}, "model_type 'evil' cannot learn text-classification"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config replaces the layers"),
        ({"attn_implementation": "someone/kernels"}, "attn_implementation replaces the layers"),
        ({"intermediate_size": 7}, "in the weights, .*7.* by config.json; give the config"),
    ],
)
def test_configs_that_ask_for_more_than_weights_are_refused(
    config: dict[str, Any], sentence: str, world: Roots, tmp_path: Path
) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        load_trained(spoiled(world, tmp_path, **config), TEXT, LABELS, seed=0)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"hiden_size": 8}, "no setting 'hiden_size'; did you mean hidden_size?"),
        ({"num_labels": 7}, "num_labels 7 but the data has 3 labels; omit it"),
        ({"hidden_size": 10, "num_attention_heads": 3}, "bert cannot be built from these values"),
        ({"hidden_size": "wide"}, "bert cannot be built from these values"),
        ({"pad_token_id": 26}, "bert cannot be built from these values"),
        ({"return_dict": False}, "return_dict is set by the service"),
        ({"id2label": {"0": "fruit"}}, "id2label is set by the service"),
        ({"quantization_config": {}, "attn_implementation": "a/b"}, "replaces the layers"),
    ],
)
def test_configs_from_scratch_that_make_no_model_are_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        build({"model_type": "bert", **BERT, **config}, TEXT, LABELS, seed=0, overrides={"vocab_size": 26})
    assert sentence in refused.value.message


def test_the_hub_is_closed_unless_the_operator_opens_it(world: Roots) -> None:
    with pytest.raises(PathRefused, match="needs the hub, which is closed here"):
        folder_of(ModelSpec(hub="org/model", revision="0" * 40), world, "source.model")


def test_the_tokenizer_is_the_one_given_else_its_own_else_the_sources(world: Roots, tmp_path: Path) -> None:
    encoder, classifier = (world.models[0] / name for name in ("encoder", "classifier"))
    scratch = {"model_type": "bert"}

    def found(spec: ModelSpec, own: Path | None, source: Path | None) -> Path | None:
        return processor_folder(spec, TEXT, world, own=own, source=source, field="target.model")

    assert found(ModelSpec(config=scratch, tokenizer="classifier"), None, encoder) == classifier
    assert found(ModelSpec(path="classifier"), classifier, encoder) == classifier
    assert found(ModelSpec(config=scratch), None, encoder) == encoder
    with pytest.raises(ModelRefused, match=r"no tokenizer and the source has none to share; give target\.model\.tok"):
        found(ModelSpec(config=scratch), None, tmp_path)
    (world.models[0] / "empty").mkdir(exist_ok=True)
    with pytest.raises(ModelRefused, match=r"empty holds none of tokenizer\.json"):
        found(ModelSpec(config=scratch, tokenizer="empty"), None, encoder)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelRefused, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
