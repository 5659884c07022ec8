"""Reads what a model folder says of itself: config, weight names and shapes, vocabulary. No weights, no torch.

This is also the first guard: nothing that could run code or unpickle is ever opened.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.composite_config import check_towers
from mergenet_core.model_files.knowledge_pack import read_pack, unpacked
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.model_files.safetensors_header import header

_JSON_BYTES_MAX = 200_000_000
_HEADS = ("classifier.", "score.", "head.", "cls_head.", "qa_outputs.")


def inspect_model(folder: Path, task: str | None = None) -> ModelInfo:
    """Everything that pairing needs of a saved model, or of a pack.

    Raises: `ModelRefused` for pickled weights, code of its own, a model type that no task here knows, torn files.
    """
    if folder.is_file():
        return _inspect_pack(folder, task)
    config = read_config(folder, task)
    shapes = {name: tuple(entry["shape"]) for path in weight_files(folder) for name, entry in header(path).items()}
    has_head = any(name.startswith(_HEADS) or ".classifier." in name for name in shapes)
    return ModelInfo(
        config=config,
        shapes=shapes,
        vocabulary=read_vocabulary(folder),
        labels=_labels(config, folder.name) if has_head else None,
    )


def _inspect_pack(path: Path, task: str | None) -> ModelInfo:
    pack = read_pack(path)
    check_config(pack.config, task, where=path.name)
    shapes = {name: tensor.shape for name, tensor in pack.tensors.items()}
    return ModelInfo(config=pack.config, shapes=shapes, vocabulary=read_vocabulary(path), labels=pack.labels)


def read_config(folder: Path, task: str | None = None) -> dict[str, Any]:
    """A model folder's config.json. Raises: `ModelRefused`."""
    config = _json(folder / "config.json")
    check_config(config, task, where=folder.name)
    return config


def check_config(config: dict[str, Any], task: str | None, *, where: str) -> None:
    """Refuse code of the model's own and model types that cannot learn the task. Raises: `ModelRefused`."""
    if "auto_map" in config:
        raise ModelRefused(f"{where} brings code of its own (auto_map); only architectures of transformers are loaded")
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise ModelRefused(f"{where}: model_type {kind!r} is not text; correct the config")
    if task is not None and kind not in model_types()[task]:
        near = ", ".join(sorted(model_types()[task])[:6])
        raise ModelRefused(f"{where}: model_type {kind!r} cannot learn {task}; known are {near}, … (GET /schema/job)")
    check_towers(config, where)
    both_ways = kind in model_types()["masked-language-modelling"] and not config.get("is_decoder")
    if task == "causal-language-modelling" and both_ways:
        raise ModelRefused(
            f"{where}: a {kind} reads the tokens that it is to predict; set is_decoder: true in its config, or take a "
            "decoder such as gpt2 or llama, or masked-language-modelling"
        )


@cache
def model_types() -> dict[str, frozenset[str]]:
    """The model types that can learn each task: those of the pinned transformers, and the built-in ones."""
    found = json.loads((Path(__file__).parents[1] / "architectures" / "model_types.json").read_text())
    return {task: frozenset(types) for task, types in found.items()}


def weight_files(folder: Path) -> list[Path]:
    """A model folder's safetensors files, or the one that a pack is. Raises: `ModelRefused` when one is missing."""
    if folder.is_file():
        return [folder]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _json(index).get("weight_map", {})
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelRefused(f"{folder.name}/{index.name}: weight_map is not a map to file names; save it again")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing or not names:
            raise ModelRefused(f"{folder.name}: the index names {', '.join(missing) or 'no file'}, not there; copy all")
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    pickled = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt", "pkl") for path in folder.glob(f"*.{suffix}"))
    if pickled:
        raise ModelRefused(
            f"{folder.name} has pickled weights only ({pickled[0]}); they can run code. "
            "Save the model with save_pretrained, which writes safetensors"
        )
    raise ModelRefused(f"{folder.name} has no weights: expected model.safetensors")


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """A tokenizer's entries, the same whichever file they are kept in; None where there is no tokenizer.

    Raises: `ModelRefused` for a tokenizer file that is not one.
    """
    tokens = _tokens(folder)
    if tokens is None:
        return None
    rows = json.dumps(sorted((index, token) for token, index in tokens.items()), ensure_ascii=True)
    return Vocabulary(hashlib.sha256(rows.encode()).hexdigest(), tokens)


def _tokens(folder: Path) -> dict[str, int] | None:
    if folder.is_file():
        with unpacked(folder) as files:
            return _tokens(files)
    name = next((name for name in ("tokenizer.json", "vocab.json", "vocab.txt") if (folder / name).exists()), None)
    if name is None:
        return None
    try:
        if name == "tokenizer.json":
            found = _fast_vocabulary(_json(folder / name))
        elif name == "vocab.json":
            found = _json(folder / name)
        else:
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
            found = {token: index for index, token in enumerate(lines)}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        found = {"": None}
    if not all(isinstance(token, str) and type(index) is int for token, index in found.items()):
        raise ModelRefused(f"{folder.name}/{name} is not a tokenizer's map from tokens to ids; save it again")
    return found


def _fast_vocabulary(tokenizer: dict[str, Any]) -> dict[str, Any]:
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram keeps [token, score] in the order of ids
        vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    return {**vocabulary, **added}


def _labels(config: dict[str, Any], where: str) -> tuple[str, ...] | None:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        return None
    if not all(key.isdecimal() and isinstance(name, str) for key, name in names.items()):
        raise ModelRefused(f"{where}: id2label in config.json does not map whole numbers to names; correct it")
    return tuple(names[key] for key in sorted(names, key=int))


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_BYTES_MAX:
            raise ModelRefused(f"{path.name} is larger than {_JSON_BYTES_MAX:,} bytes; it is not what it should be")
        found = json.loads(path.read_bytes())
    except OSError:
        raise ModelRefused(f"{path.parent.name} has no {path.name}; give a folder in the Hugging Face layout") from None
    except (ValueError, RecursionError):
        raise ModelRefused(f"{path.parent.name}/{path.name} is not JSON") from None
    if not isinstance(found, dict):
        raise ModelRefused(f"{path.parent.name}/{path.name} is not a JSON object")
    return found
