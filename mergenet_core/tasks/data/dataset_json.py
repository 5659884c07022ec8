"""The files of a task's own data set: SQuAD's, VQA's and MSCOCO's JSON, and the images that they speak of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from mergenet_core.errors import DataRefused
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.data.tables import Table


def own_json(data: DataSpec, split: str, roots: Roots, field: str, key: str) -> tuple[Path, dict[str, Any]] | None:
    """A split's file and what it holds, where that is a JSON object with the data set's key; None for a table.

    Raises: `PathRefused`.
    """
    if data.hub is not None:
        return None
    path = roots.dataset(getattr(data, split), field)
    found = read_json(path) if path.suffix.lower() == ".json" else None
    return (path, found) if isinstance(found, dict) and key in found else None


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is none, but perhaps JSON lines or torn: the table's reader tells."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def picture_table(names: Sequence[str], data: DataSpec, folder: Path, field: str) -> Table:
    """Images by their names in a folder, as a table. Raises: `DataRefused` for the first that is not there."""
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise DataRefused(f"{field}: the image {missing} is not in {folder.name}; copy all images of the split there")
    rows = datasets.Dataset.from_dict({data.image: [{"bytes": None, "path": name} for name in names]})
    return Table(rows, field, "", folder)
