"""The JSON files in which data sets are published: SQuAD's, VQA's and MSCOCO's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from mergenet_core.errors import DataRefused
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.tasks.task import TaskInputs


def read_dataset_json(inputs: TaskInputs, split: str, key: str) -> tuple[Path, JsonObject] | None:
    """A split's file and its content, if that is a JSON object with the data set's key; None for a table.

    Raises: `PathRefused`.
    """
    data = inputs.data
    if data.hub is not None:
        return None
    path = inputs.roots.dataset(getattr(data, split), f"{inputs.field}.{split}")
    found = read_json(path) if path.suffix.lower() == ".json" else None
    return (path, found) if isinstance(found, dict) and key in found else None


def read_json(path: Path) -> JsonValue:
    """Parsed JSON, or None if the file is not one JSON document (the table's reader reports that)."""
    try:
        found: JsonValue = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return found


def entries(parent: JsonValue | JsonObject, name: str) -> Iterator[JsonObject]:
    """The objects in a list of an object. Raises: `KeyError` and `TypeError` where there is no such list."""
    if not isinstance(parent, dict):
        raise TypeError(f"{str(parent)[:50]!r} is not an object with {name}")
    found = parent[name]
    if not isinstance(found, list):
        raise TypeError(f"{name} is not a list")
    for entry in found:
        if not isinstance(entry, dict):
            raise TypeError(f"an entry of {name} is {str(entry)[:50]!r}, not an object")
        yield entry


def integer(entry: JsonObject, name: str) -> int:
    """A whole number of an object. Raises: `KeyError`, `TypeError`."""
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, not a whole number")
    return value


@contextmanager
def published_form(where: str, form: str) -> Iterator[None]:
    """Report an entry that is missing or of another type with the form that is expected. Raises: `DataRefused`."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise DataRefused(f"{where} is not in {form} ({error!r})") from None
