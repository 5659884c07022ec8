"""Where a schedule of steps has its steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _rising(shares: list[float]) -> list[float]:
    if sorted(set(shares)) != shares:
        raise ValueError(f"milestones must rise, and none may repeat: {shares}")
    return shares


Milestones = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1, max_length=100), AfterValidator(_rising)
]
"""Shares of a training's steps, ascending."""
