"""The blocks of a CNN: its modules in the order that data passes through them, with the weights of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mergenet_core.architectures.structure import LogicalWeight, ModelStructure


@dataclass(frozen=True)
class Block:
    """A module that reads what the one before returns."""

    name: str
    """The module's, such as `resnet.encoder.stages.0.layers.0`."""
    linear: bool
    """There is no activation at its end."""
    weights: tuple[LogicalWeight, ...]


def blocks_of(structure: ModelStructure) -> tuple[Block, ...]:
    """The blocks of a CNN from the first to the last, without its head; empty for other models."""
    declared = structure.family.blocks
    if declared is None:
        return ()
    found: dict[str, list[LogicalWeight]] = {}
    linear: dict[str, bool] = {}
    for weight in structure.weights:
        match = re.match(rf"((?:[^.]+\.)*?)({declared.modules})\.", weight.name)
        if match is not None:
            name = f"{match[1]}{match[2]}"
            found.setdefault(name, []).append(weight)
            linear[name] = re.fullmatch(declared.linear, match[2]) is not None
    return tuple(Block(name, linear[name], tuple(weights)) for name, weights in found.items())
