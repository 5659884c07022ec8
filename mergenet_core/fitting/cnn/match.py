"""Which part of the source each part of a target stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mergenet_core.fitting.cnn.parts import Part, observe


@dataclass(frozen=True)
class _Position:
    """Where in its model a part is."""

    halvings: float
    """How often the image was halved."""
    depth: float
    """The share of the model's parts that it and those before it are."""
    among_its_size: float
    """The same among the parts with feature maps of its size."""


def match_parts(source: Sequence[float], target: Sequence[float]) -> list[int]:
    """For each part of the target a part of the source, ascending; the last part of both are matched.

    Given are how often the parts have halved the image. The matches cost the least in sum: one costs the halvings by
    which the two differ, the difference of their depths, and that of their positions among parts of the same size.
    Where the models' last parts differ by more than one halving, all of the target's count as many more or fewer.
    """
    stretch = source[-1] / target[-1] if abs(source[-1] - target[-1]) > 1 and target[-1] > 0 else 1.0
    ones, others = _positions(source, 1.0), _positions(target, stretch)
    best = [_cost(one, others[0]) for one in ones]
    choices: list[list[int]] = []
    for other in others[1:]:
        before = [min(range(number + 1), key=best.__getitem__) for number in range(len(ones))]
        best = [best[earlier] + _cost(one, other) for earlier, one in zip(before, ones, strict=True)]
        choices.append(before)
    found = [len(ones) - 1]
    for before in reversed(choices):
        found.append(before[found[-1]])
    return found[::-1]


def _positions(halvings: Sequence[float], stretch: float) -> list[_Position]:
    return [
        _Position(
            halvings=own * stretch,
            depth=(number + 1) / len(halvings),
            among_its_size=halvings[: number + 1].count(own) / halvings.count(own),
        )
        for number, own in enumerate(halvings)
    ]


def _cost(one: _Position, other: _Position) -> float:
    apart = abs(one.among_its_size - other.among_its_size)
    return abs(one.halvings - other.halvings) + abs(one.depth - other.depth) + apart


def halvings(parts: Sequence[Part], images: Tensor) -> list[float]:
    """How often each part has halved the images' side."""
    found, x = [], images[:1]
    for part in parts:
        x = observe(part, x).out
        found.append(round(math.log2(images.shape[-1] / x.shape[-1]), 2))
    return found
