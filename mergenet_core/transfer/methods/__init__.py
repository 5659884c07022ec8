"""The transfer methods: one file for each, one row in `METHODS` for each."""

from __future__ import annotations

from mergenet_core.transfer.methods.anchored import Anchored
from mergenet_core.transfer.methods.copy import copy_largest
from mergenet_core.transfer.methods.lpka import Lpka
from mergenet_core.transfer.methods.lpka_raw import LpkaRaw
from mergenet_core.transfer.methods.method import Learned, TrainingFree
from mergenet_core.transfer.methods.project import project

METHODS: tuple[TrainingFree | Learned, ...] = (
    TrainingFree("project", project),
    TrainingFree("copy", copy_largest),
    Learned("anchored", Anchored),
    Learned("lpka", Lpka),
    Learned("lpka-raw", LpkaRaw, clip_norm=50.0),
)
"""Every method: name, training-free or learned, factory. `copy` is a baseline arm, not a method that a job can name."""


def method_named(name: str) -> TrainingFree | Learned:
    """The method of that name."""
    return next(method for method in METHODS if method.name == name)
