"""What a worker would refuse is refused before a job is queued: settings, sizes that do not divide, lengths, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mergenet_core.models.builtin  # noqa: F401  # registers the built-in model types
from mergenet_core.architectures.check_settings import _activations, _settings, check_settings, text_positions
from mergenet_core.architectures.registry import FAMILIES, TWO_TOWER_FAMILIES
from mergenet_core.errors import DataRefused, ModelRefused, SpecInvalid
from mergenet_core.planning.data_checks import check_data
from mergenet_core.planning.job_models import target_info
from mergenet_core.spec.data import DataSpec
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots

BERT: dict[str, Any] = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (BERT | {"hiden_size": 3}, r"config\.hiden_size: bert has no setting 'hiden_size'; did you mean hidden_size\?"),
        (BERT | {"zzzzz": 3}, r"config\.zzzzz: bert has no setting 'zzzzz'; leave it out"),
        (BERT | {"id2label": {"0": "a"}}, r"config\.id2label is set by the service"),
        (BERT | {"num_attention_heads": 5}, "the width 32 is no multiple of the 5 attention heads"),
        (LLAMA | {"num_key_value_heads": 3}, "the 4 attention heads are no multiple of the 3 heads of keys and values"),
        (BERT | {"hidden_act": "geluu"}, r"config\.hidden_act: there is no activation 'geluu'; did you mean gelu\?"),
        (BERT | {"torch_dtype": "float12"}, r"config\.torch_dtype is 'float12'; it is float32, float16, bfloat16"),
        (BERT | {"hidden_dropout_prob": 7}, r"config\.hidden_dropout_prob is 7; a dropout is a share"),
        (BERT | {"num_hidden_layers": 0}, r"config\.num_hidden_layers is 0; a model has at least 1 layer"),
        (
            {"model_type": "clip", "text_config": {"num_attention_heads": 7}},
            r"config\.text_config: the width 512 is no multiple of the 7 attention heads",
        ),
    ],
)
def test_a_setting_that_no_model_can_have_is_named(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        check_settings(config, where="config")


@pytest.mark.parametrize("config", [BERT, LLAMA, LLAMA | {"hidden_size": 30, "head_dim": 8}])
def test_settings_that_fit_pass(config: dict[str, Any]) -> None:
    check_settings(config, where="config")


def test_the_known_settings_are_those_of_the_installed_transformers() -> None:
    from transformers.activations import ACT2FN

    from mergenet_core.models.loading import _known_settings

    declared = {kind for family in FAMILIES for kind in family.model_types}
    declared |= {family.model_type for family in TWO_TOWER_FAMILIES}
    assert set(_settings()) == declared
    for kind, known in _settings().items():
        assert set(known) == _known_settings(kind), kind
    assert _activations() == sorted(ACT2FN)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (BERT, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "gpt2", "n_positions": 64}, 64),
        ({"model_type": "clip"}, 77),
        (LLAMA, None),
        ({"model_type": "bloom"}, None),
    ],
)
def test_the_longest_text_that_a_model_reads(config: dict[str, Any], positions: int | None) -> None:
    assert text_positions(config) == positions


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    return Roots(models=(tmp_path,), data=(tmp_path,))


def test_a_text_longer_than_the_model_reads_is_refused(roots: Roots) -> None:
    model = {"config": BERT | {"max_position_embeddings": 16}, "tokenizer": "tokenizer"}
    data = {"train": "a.jsonl", "test": "b.jsonl", "max_length": 17}
    job: dict[str, Any] = {
        "name": "x",
        "source": {"model": {"path": "tokenizer"}},
        "target": {"model": model, "task": "text-classification", "data": data},
        "train": {"steps": 1},
    }
    with pytest.raises(SpecInvalid, match=r"target\.data\.max_length is 17, the model reads 16 tokens"):
        target_info(parse(job), roots)
    data["max_length"] = 16
    target_info(parse(job), roots)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "folders"])
def test_a_label_that_training_lacks_is_refused(roots: Roots, tmp_path: Path, kind: str) -> None:
    def write(split: str, labels: list[str]) -> str:
        path = tmp_path / (split if kind == "folders" else f"{split}.{kind}")
        if kind == "folders":
            for label in labels:
                (path / label).mkdir(parents=True, exist_ok=True)
                (path / label / "a.txt").write_text("a")
        elif kind == "csv":
            path.write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels))
        else:
            path.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels))
        return path.name

    data = DataSpec(train=write("train", ["yes", "no", "1"]), test=write("test", ["no", "1"]))
    check_data(data, "text-classification", roots, "target.data")
    data = DataSpec(train=write("train", ["yes", "no"]), test=write("more", ["no", "maybe"]))
    with pytest.raises(DataRefused, match=r"target\.data\.test: label 'maybe' does not occur in the training split"):
        check_data(data, "text-classification", roots, "target.data")
