"""What can be known of a model without loading it: its config and the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelFacts:
    """A model seen from outside: enough to pair its weights with another's."""

    config: Mapping[str, Any]
    """Its config.json."""
    shapes: Mapping[str, tuple[int, ...]]
    """Name → shape of every parameter and buffer, as in its state dict; a base model's prefix may be there or not."""
    vocabulary: str | None = None
    """SHA-256 of the tokenizer's token → id map; two equal ones mean that embedding rows are shared."""
    labels: tuple[str, ...] | None = None
    """The label space in the head's row order; None where there is no trained head."""
