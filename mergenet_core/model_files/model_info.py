"""What can be known of a model without loading it: its config and the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergenet_core.architectures.axes import Shapes
from mergenet_core.spec.json_values import JsonObject


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's entries and the rows that they have in an embedding; equal where the rows are."""

    sha256: str
    """Of the token → id map, the same whichever file it is kept in."""
    tokens: Mapping[str, int] = field(compare=False, repr=False, default_factory=dict)

    @property
    def size(self) -> int:
        """One more than the largest row."""
        return 1 + max(self.tokens.values(), default=-1)


@dataclass(frozen=True)
class ModelInfo:
    """A model seen from outside: enough to pair its weights with another's."""

    config: JsonObject
    """Its config.json."""
    shapes: Shapes
    """Name → shape of every parameter and buffer, as in its state dict; a base model's prefix may be there or not."""
    vocabulary: Vocabulary | None = None
    """The tokenizer's entries, which embedding rows belong to."""
    labels: tuple[str, ...] | None = None
    """The label space in the head's row order; None where there is no trained head."""
    label_column: str | None = None
    """The column of the job's data whose labels the head will learn, while their names have not been read."""
