"""Reads a model folder or a pack from outside: config, names and shapes, vocabulary. No weights, no torch.

This is also the first guard: nothing that could run code or unpickle is ever opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from mergenet_core.architectures.check_config import check_config, check_sizes_are_numbers
from mergenet_core.architectures.registry import is_label_head
from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.knowledge_pack import read_pack, unpacked
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.model_files.regular_file import check_regular
from mergenet_core.model_files.safetensors_header import shapes_in
from mergenet_core.spec.json_values import JsonObject, get_object
from mergenet_core.spec.task_info import TaskName

_JSON_BYTES_MAX = 200_000_000
_WHITE_SPACE = "".join(
    letter for letter in map(chr, range(0x3001)) if letter.isspace() and letter not in "\x1c\x1d\x1e\x1f"
)
"""What Unicode calls white space; Python counts four separators more."""


def inspect_model(folder: Path, task: TaskName | None = None) -> ModelInfo:
    """Everything that pairing needs of a saved model, or of a pack.

    Raises: `ModelRefused` for pickled weights, code of its own, a model type that no task here knows, torn files.
    """
    if folder.is_file():
        return _inspect_pack(folder, task)
    config = read_config(folder, task)
    shapes = {name: shape for path in weight_files(folder) for name, shape in shapes_in(path).items()}
    has_head = any(is_label_head(name) or ".classifier." in name for name in shapes)
    return ModelInfo(
        config=config,
        shapes=shapes,
        vocabulary=read_vocabulary(folder),
        labels=_labels(config, folder.name) if has_head else None,
    )


def _inspect_pack(path: Path, task: TaskName | None) -> ModelInfo:
    pack = read_pack(path)
    check_config(pack.config, task, where=path.name)
    check_sizes_are_numbers(pack.config, where=path.name)
    shapes = {name: tensor.shape for name, tensor in pack.tensors.items()}
    return ModelInfo(config=pack.config, shapes=shapes, vocabulary=read_vocabulary(path), labels=pack.labels)


def read_config(folder: Path, task: TaskName | None = None) -> dict[str, JsonValue]:
    """A model folder's config.json. Raises: `ModelRefused`."""
    config = _json(folder / "config.json")
    check_config(config, task, where=folder.name)
    check_sizes_are_numbers(config, where=folder.name)
    return config


def weight_files(folder: Path) -> list[Path]:
    """A model folder's safetensors files, or the one that a pack is. Raises: `ModelRefused` when one is missing."""
    if folder.is_file():
        return [folder]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _json(index).get("weight_map", {})
        files = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        names = sorted({name for name in files if isinstance(name, str)})
        if not all(isinstance(name, str) for name in files):
            raise ModelRefused(f"{folder.name}/{index.name}: weight_map is not a map to file names; save it again")
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
    found: Mapping[object, object]
    try:
        if name == "tokenizer.json":
            found = _fast_vocabulary(_json(folder / name))
        elif name == "vocab.json":
            found = dict(_json(folder / name).items())
        else:
            found = _numbered_lines(folder / name)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        found = {"": None}
    tokens = {token: row for token, row in found.items() if isinstance(token, str) and type(row) is int}
    if len(tokens) < len(found):
        raise ModelRefused(f"{folder.name}/{name} is not a tokenizer's map from tokens to ids; save it again")
    return tokens


def _numbered_lines(path: Path) -> dict[object, object]:
    """Token → number of its line, as the tokenizers library reads it.

    Only a line feed ends a line: a separator such as U+2028 may be a token, and must not shift the ids behind it.
    """
    check_regular(path)
    lines = path.read_bytes().decode().split("\n")
    if lines[-1] == "":
        lines.pop()
    return {token.rstrip(_WHITE_SPACE): index for index, token in enumerate(lines)}


def _fast_vocabulary(tokenizer: JsonObject) -> dict[object, object]:
    vocabulary: object = get_object(tokenizer, "model").get("vocab", {})
    added: object = tokenizer.get("added_tokens", [])
    found: dict[object, object] = {}
    if isinstance(vocabulary, list):  # Unigram keeps [token, score] in the order of ids
        found = {entry[0]: index for index, entry in enumerate(vocabulary)}
    elif isinstance(vocabulary, dict):
        found = {**vocabulary}
    else:
        raise ValueError("a vocabulary is a map or a list")
    if not isinstance(added, list):
        raise ValueError("added tokens are a list")
    return found | {entry["content"]: entry["id"] for entry in added}


def _labels(config: JsonObject, where: str) -> tuple[str, ...] | None:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        return None
    rows = {int(row): name for row, name in names.items() if row.isdecimal() and isinstance(name, str)}
    if len(rows) < len(names):
        raise ModelRefused(f"{where}: id2label in config.json does not map whole numbers to names; correct it")
    return tuple(rows[row] for row in sorted(rows))


def _json(path: Path) -> dict[str, JsonValue]:
    try:
        check_regular(path)
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
