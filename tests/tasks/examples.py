"""A task's examples read through its row of the table, as a trial reads them."""

from __future__ import annotations

from typing import Any

from mergenet_core.spec.data import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.loading import task_loader
from mergenet_core.tasks.task import TaskInputs


def read_examples(name: str, data: DataSpec, roots: Roots, *, seed: int = 0, **inputs: Any) -> Any:
    return task_loader(name)(TaskInputs(data, roots, seed=seed, field="target.data", **inputs))
