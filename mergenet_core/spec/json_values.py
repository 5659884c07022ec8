"""Free-form parts of the document hold what JSON can: read from YAML, they could hold dates, bytes, sets and more."""

from __future__ import annotations

import math
from typing import Any

DEPTH_MAX = 16
_WHOLE_MAX = 2**53
"""Whole numbers beyond this are not the same in every reader of JSON."""


def check_plain(value: Any, where: str = "config", depth: int = 0) -> None:
    """Refuse what would not come back the same from JSON. Raises: `ValueError` naming the place and the way out."""
    if depth > DEPTH_MAX:
        raise ValueError(f"{where[:200]} is nested deeper than {DEPTH_MAX} levels; make it flatter")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} is not text; put it in quotes")
            _check_text(key, where)
            check_plain(entry, f"{where}.{key}", depth + 1)
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            check_plain(entry, f"{where}.{place}", depth + 1)
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; write a finite number")
    elif isinstance(value, int) and abs(value) > _WHOLE_MAX:
        raise ValueError(f"{where} is a number of {value.bit_length()} bits; write a smaller one")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(
            f"{where} is of type {type(value).__name__}; write text, a number, true, false, null or a list"
        )


def _check_text(text: str, where: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{where} holds half of a character (a lone surrogate); write the whole one")
