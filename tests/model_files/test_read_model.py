"""Model folders are read from outside, and what could harm is refused before it is opened."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertTokenizer
from transformers.models.auto import modeling_auto

from mergenet_core.architectures.check_config import model_types
from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.read_model import inspect_model, read_vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"model_type": "bert", "id2label": {"0": "no", "1": "yes"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"bert.x": torch.zeros(2, 3), "classifier.weight": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("[PAD]\nthe\ncat\n")
    return tmp_path


def test_facts_of_a_folder(folder: Path) -> None:
    facts = inspect_model(folder, "text-classification")
    assert facts.shapes == {"bert.x": (2, 3), "classifier.weight": (2, 3)}
    assert facts.labels == ("no", "yes")
    assert read_vocabulary(folder).size == 3


def test_a_vocabulary_hashes_the_same_from_any_of_its_files(folder: Path) -> None:
    from_lines = read_vocabulary(folder)
    tokenizer = {"model": {"vocab": {"the": 1, "[PAD]": 0, "cat": 2}}, "added_tokens": [{"id": 0, "content": "[PAD]"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_vocabulary(folder) == from_lines
    tokenizer["model"]["vocab"]["cat"] = 3  # type: ignore[index]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_vocabulary(folder) != from_lines


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_vocabularys_lines_are_those_that_the_tokenizer_reads(folder: Path, ending: str) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a\u2028", "b", "\u0085", "c\x0b", "\x1c", "the"]
    (folder / "vocab.txt").write_bytes("".join(word + ending for word in words).encode())
    vocabulary = read_vocabulary(folder)
    assert vocabulary is not None
    assert vocabulary.tokens["the"] == words.index("the")
    assert dict(vocabulary.tokens) == BertTokenizer.from_pretrained(folder).get_vocab()


def test_a_source_without_a_head_has_no_labels(folder: Path) -> None:
    save_file({"x": torch.zeros(2, 3)}, folder / "model.safetensors")
    assert inspect_model(folder).labels is None


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _own_code(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}))


def _unknown(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "skynet"}))


def _torn(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4])


def _giant_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def _no_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"nope")


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index_leads_out(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))


def _written(name: str, content: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(text)

    return write


def _header(entry: dict[str, object]) -> Callable[[Path], None]:
    text = json.dumps({"x": {"dtype": "F32"} | entry}).encode()
    return _written("model.safetensors", struct.pack("<Q", len(text)) + text + b"1234")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_pickled, "pickled weights only"),
        (_own_code, "brings code of its own"),
        (_unknown, "model_type 'skynet' cannot learn text-classification"),
        (_torn, "it is incomplete"),
        (_giant_header, "not a whole safetensors file"),
        (_no_header, "header cannot be read"),
        (_missing_shard, "not there"),
        (_index_leads_out, "not there"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (_written("config.json", {"model_type": ["bert"]}), "model_type \\['bert'\\] is not text"),
        (_written("config.json", {"model_type": "bert", "id2label": {"no": "yes"}}), "id2label in config.json"),
        (
            _written("config.json", {"model_type": "bert", "num_attention_heads": "many"}),
            "num_attention_heads is 'many'; it must be a whole number; correct config.json",
        ),
        (_written("config.json", {"model_type": "bert", "id2label": {"0": 1}}), "id2label in config.json"),
        (_written("model.safetensors.index.json", {"weight_map": ["x"]}), "weight_map is not a map"),
        (_written("model.safetensors.index.json", {"weight_map": {"x": 5}}), "weight_map is not a map"),
        (_header({"data_offsets": [0, 4]}), "header cannot be read"),
        (_header({"shape": ["x"], "data_offsets": [0, 4]}), "header cannot be read"),
        (_header({"shape": [10**400], "data_offsets": [0, 4]}), "header cannot be read"),
        (_header({"shape": [1], "data_offsets": ["0", "x"]}), "header cannot be read"),
        (_header({"shape": [1], "data_offsets": []}), "header cannot be read"),
        (_written("tokenizer.json", {"model": 5}), "tokenizer.json is not a tokenizer's map"),
        (_written("tokenizer.json", {"model": {"vocab": [1]}}), "tokenizer.json is not a tokenizer's map"),
        (_written("tokenizer.json", {"model": {"vocab": {"a": "x"}}}), "tokenizer.json is not a tokenizer's map"),
        (_written("tokenizer.json", {"added_tokens": [{}]}), "tokenizer.json is not a tokenizer's map"),
        (_written("vocab.txt", b"\xff\xfe"), "vocab.txt is not a tokenizer's map"),
    ],
)
def test_what_could_harm_is_refused(folder: Path, harm: object, sentence: str) -> None:
    harm(folder)  # type: ignore[operator]
    with pytest.raises(ModelRefused, match=sentence):
        inspect_model(folder, "text-classification")


def test_the_shipped_list_of_model_types_is_that_of_the_installed_transformers() -> None:
    built_in = {"mergenet-cnn", "mergenet-mlp", "mergenet-resnet", "mergenet-mobilenet-v2"}
    text = set(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    image = set(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) | built_in
    assert model_types() == {
        "text-classification": text,
        "image-classification": image,
        "question-answering": set(modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
        "causal-language-modelling": set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        "masked-language-modelling": set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        # the others of their auto classes write their answers, or have no joint space
        "visual-question-answering": {"vilt"},
        "image-text-retrieval": {"clip", "vision-text-dual-encoder"},
    }
