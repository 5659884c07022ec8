"""JSON values: their types, typed reading, and the check of the free-form parts of a job document.

A document read from YAML could also hold dates, bytes or sets; `check_json` refuses what JSON cannot carry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, JsonValue, ValidationInfo

JsonObject: TypeAlias = Mapping[str, JsonValue]
"""A JSON object that is only read, such as a model's config."""

DEPTH_MAX = 16
"""Levels of lists and objects in a document's free-form settings."""
_INTEGER_MAX = 2**53
"""Whole numbers beyond this are not the same in every reader of JSON."""


def get_int(values: JsonObject, *names: str, default: int) -> int:
    """The first of the named entries that is present and not null. Raises: `ValueError` if it is no whole number."""
    name, value = _first(values, names, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    return value


def get_float(values: JsonObject, *names: str, default: float) -> float:
    """The first of the named entries that is present and not null. Raises: `ValueError` if it is no number."""
    name, value = _first(values, names, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    return float(value)


def get_bool(values: JsonObject, *names: str, default: bool) -> bool:
    """Whether the first of the named entries that is present and not null is true."""
    return bool(_first(values, names, default)[1])


def get_str(values: JsonObject, *names: str, default: str = "") -> str:
    """The first of the named entries that is present and not null. Raises: `ValueError` if it is no text."""
    name, value = _first(values, names, default)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it must be text")
    return value


def get_ints(values: JsonObject, name: str, *, default: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of the named entry. Raises: `ValueError` if it is no list of whole numbers."""
    value: object = values.get(name)
    if value is None:
        return default
    # a config that comes from a model in memory holds tuples
    if not isinstance(value, (list, tuple)) or not all(type(entry) is int for entry in value):
        raise ValueError(f"{name} is {value!r}; it must be a list of whole numbers")
    return tuple(value)


def get_object(values: JsonObject, name: str) -> JsonObject:
    """The named entry, empty where it is absent or null. Raises: `ValueError` if it is no object."""
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; it must be an object of names and values")
    return value


def _first(values: JsonObject, names: tuple[str, ...], default: JsonValue) -> tuple[str, JsonValue]:
    return next(((name, values[name]) for name in names if values.get(name) is not None), (names[0], default))


def check_json(value: object, where: str, depth: int = 0) -> None:
    """Refuse what would not come back the same from JSON. Raises: `ValueError` naming the entry and the remedy."""
    if depth > DEPTH_MAX:
        raise ValueError(f"{where[:200]} is nested deeper than {DEPTH_MAX} levels; make it flatter")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} is not text; put it in quotes")
            _check_text(key, where)
            check_json(entry, f"{where}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            check_json(entry, f"{where}.{index}", depth + 1)
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; write a finite number")
    elif isinstance(value, int) and abs(value) > _INTEGER_MAX:
        raise ValueError(f"{where} is a number of {value.bit_length()} bits; write a smaller one")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(
            f"{where} is of type {type(value).__name__}; write text, a number, true, false, null or a list"
        )


def _check_text(text: str, where: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{where} holds half of a character (a lone surrogate); write the whole one")


def _checked(value: object, info: ValidationInfo) -> object:
    check_json(value, info.field_name or "the value")
    return value


JsonSettings: TypeAlias = Annotated[dict[str, JsonValue], BeforeValidator(_checked)]
"""Free-form settings in a document, checked by `check_json`."""
