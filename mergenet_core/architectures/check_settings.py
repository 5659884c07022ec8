"""Whether a config from a job document can be built: its keys, the values that they may have, sizes that divide.

A worker would find the same when it builds the model; the names that transformers knows are in a file, so that the API
needs no transformers.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from mergenet_core.architectures.registry import find_family
from mergenet_core.architectures.two_tower_config import text_config, tower_configs
from mergenet_core.errors import ModelRefused
from mergenet_core.spec.json_values import JsonObject, get_int

SERVICE_KEYS = ("id2label", "label2id", "return_dict", "chunk_size_feed_forward")
"""Config keys that the service sets, from the data or from how it calls a model."""
_OWN_KEYS = frozenset({"model_type", "num_labels"})
_DTYPES = ("float32", "float16", "bfloat16")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_ACTIVATIONS = ("hidden_act", "activation", "activation_function")


def check_settings(config: JsonObject, *, where: str) -> None:
    """Refuse settings that the model type does not have, and values that no model can have. Raises: `ModelRefused`."""
    for key, tower in tower_configs(config).items():
        check_settings(tower, where=f"{where}.{key}")
    kind = str(config.get("model_type"))
    check_keys(config, _settings().get(kind), where=where)
    for key, value in config.items():
        _check_value(key, value, f"{where}.{key}")
    _check_heads(config, where)


def check_keys(config: JsonObject, known: Iterable[str] | None, *, where: str) -> None:
    """Refuse keys that are not among the known ones, or that the service sets. Raises: `ModelRefused`.

    `known` is None for a model type whose settings only a worker knows.
    """
    for key in config.keys() - _OWN_KEYS:
        if key in SERVICE_KEYS:
            raise ModelRefused(f"{where}.{key} is set by the service, from the data and the task; leave it out")
        if known is not None and key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise ModelRefused(f"{where}.{key}: {config['model_type']} has no setting {key!r}; {hint}")


def _check_value(key: str, value: JsonValue, where: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in _LAYERS and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ModelRefused(f"{where} is {value!r}; a model has at least 1 layer, as a whole number")
    if ("dropout" in key or key.endswith("pdrop")) and number and not 0 <= float(str(value)) < 1:
        raise ModelRefused(f"{where} is {value}; a dropout is a share of at least 0 and less than 1")
    if key in _ACTIVATIONS and value not in _activations():
        near = difflib.get_close_matches(str(value), _activations(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_activations())}"
        raise ModelRefused(f"{where}: there is no activation {value!r}; {hint}")
    if key in ("dtype", "torch_dtype") and value not in _DTYPES:
        raise ModelRefused(f"{where} is {value!r}; it is {', '.join(_DTYPES)}, and train.precision says how to train")


def _check_heads(config: JsonObject, where: str) -> None:
    family = find_family(str(config.get("model_type")))
    if family is None:
        return
    try:
        found = family.dimensions_of(config)
    except (TypeError, ValueError):
        return  # reported where shapes are made
    if found.heads > 0 and found.width % found.heads and config.get("head_dim") is None:
        raise ModelRefused(
            f"{where}: the width {found.width} is no multiple of the {found.heads} attention heads; change one of them"
        )
    if found.key_value_heads > 0 and found.heads % found.key_value_heads:
        raise ModelRefused(
            f"{where}: the {found.heads} attention heads are no multiple of the {found.key_value_heads} heads of keys "
            "and values; change one of them"
        )


def text_positions(config: JsonObject) -> int | None:
    """The longest text that a model reads, in tokens; None where no weight limits it, or it is not known here."""
    own = text_config(config)
    family = find_family(str(own.get("model_type")))
    if family is None:
        return None
    try:
        found = family.dimensions_of(own)
    except (TypeError, ValueError):
        return None
    body = family.body.of_config(own, found)
    if not any(spec.form == "embedding" and spec.out == "positions" for spec in body):
        return None
    # RoBERTa counts positions from behind the padding's
    unused = get_int(own, "pad_token_id", default=1) + 1 if family.name == "roberta" else 0
    return found.size("positions") - unused


@cache
def _file() -> Mapping[str, object]:
    text = (Path(__file__).parent / "transformers_settings.json").read_text(encoding="utf-8")
    found: Mapping[str, object] = json.loads(text)
    return found


def _settings() -> Mapping[str, frozenset[str]]:
    found = _file()["settings"]
    assert isinstance(found, dict)
    return found


def _activations() -> list[str]:
    found = _file()["activations"]
    assert isinstance(found, list)
    return found
