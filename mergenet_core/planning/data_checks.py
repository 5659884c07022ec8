"""Checks a job's data before anything is queued, by the first bytes of its files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from mergenet_core.errors import DataRefused, PathRefused
from mergenet_core.planning.data_files import (
    CIFAR_LABELS,
    CIFAR_RECORD,
    UNLABELLED_FOLDER,
    find_annotations,
    find_images,
)
from mergenet_core.spec.job import DataSpec, TaskName
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.paths import Roots

_JSON_HEAD = 1_000_000
"""Characters at a JSON file's beginning in which its columns must be named."""
_LINE_MAX = 10_000_000
_TABLE_BYTES_MAX = 20_000_000
"""The largest table whose labels are read before a job is queued."""
_FILE_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_PICKLES = ("", ".pkl", ".pickle", ".pt", ".pth")


def check_data(data: DataSpec, task: TaskName, roots: Roots, field: str) -> None:
    """Check that every split exists and can be read by the task. Raises: `PathRefused`, `DataRefused`."""
    if data.hub is not None:
        if not roots.hub:
            raise PathRefused(
                f"{field}.hub: this server does not open the hub; give files below its data roots, "
                "or ask the operator for MERGENET_HUB=true"
            )
        return
    for split in ("train", "test", "validation"):
        name = getattr(data, split)
        if name is not None:
            path, where = roots.dataset(name, f"{field}.{split}"), f"{field}.{split}"
            if _check_split(path, TASKS[task].columns(data), where, task):
                _check_companions(path, data, task, roots, where)
    if TASKS[task].one_label:
        _check_labels(data, roots, field)
    if data.unlabelled is not None:
        where = f"{field}.unlabelled"
        path = roots.dataset(data.unlabelled, where)
        if _check_split(path, TASKS[task].input_columns(data), where, task) and TASKS[task].names_image_files:
            find_images(path, data, roots, where)
        _check_apart(path, data, roots, field)


def _check_labels(data: DataSpec, roots: Roots, field: str) -> None:
    """Refuse labels that do not occur in the training split, where files are small. Raises: `DataRefused`."""
    known = _labels(roots.dataset(data.train, f"{field}.train"), data.label)
    for split in ("validation", "test"):
        name = getattr(data, split)
        found = None if name is None else _labels(roots.dataset(name, f"{field}.{split}"), data.label)
        unknown = sorted(found - known) if found and known else []
        if unknown:
            labels = ", ".join(sorted(known or ())[:10])
            raise DataRefused(
                f"{field}.{split}: label {unknown[0]!r} does not occur in the training split, whose labels are "
                f"{labels}; give splits with the same labels"
            )


def _labels(path: Path, column: str) -> set[str] | None:
    """The labels of a split: of a folder those of its folders, of a small table all; None where that is not known."""
    if path.is_dir():
        folders = [one for one in path.iterdir() if one.is_dir() and one.name != UNLABELLED_FOLDER]
        return {one.name for one in folders if not one.name.startswith(".") and any(one.iterdir())} or None
    if path.suffix not in (".csv", ".jsonl") or path.stat().st_size > _TABLE_BYTES_MAX:
        return None
    try:
        with path.open(encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8", newline="") as file:
            rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, filter(str.strip, file))
            return {_label(row[column]) for row in rows}
    except (ValueError, TypeError, KeyError, RecursionError, csv.Error):
        return None  # a worker says which row is wrong


def _label(value: object) -> str:
    """A label as it is compared: `1`, `1.0` and `01` are the same number."""
    text = str(value)
    number = float(text) if re.fullmatch(r"-?\d{1,15}(\.0*)?", text) else None
    return text if number is None else str(int(number))


def _check_apart(unlabelled: Path, data: DataSpec, roots: Roots, field: str) -> None:
    """Refuse unlabelled inputs that contain, or are part of, another split: they could be evaluated on."""
    for split in ("train", "test", "validation"):
        name = getattr(data, split)
        if name is None or (split == "train" and unlabelled.name == UNLABELLED_FOLDER):
            continue
        path = roots.dataset(name, f"{field}.{split}")
        if unlabelled == path or unlabelled in path.parents or path in unlabelled.parents:
            raise DataRefused(
                f"{field}.unlabelled: {data.unlabelled} and {field}.{split} ({name}) share files; give inputs that are "
                "in no other split, or unlabelled_from_train: true for the rows of train that are not held out"
            )


def _check_companions(path: Path, data: DataSpec, task: TaskName, roots: Roots, field: str) -> None:
    """Check the other files of a data set that comes in several."""
    if TASKS[task].separate_annotations:
        find_annotations(path, field)
    if TASKS[task].names_image_files:
        find_images(path, data, roots, field)


def _check_split(path: Path, wanted: tuple[str, ...], field: str, task: TaskName) -> bool:
    """Check that a split is not empty, has a known format, and has the wanted columns.

    Returns whether it has the format of the task's own data set, which needs no columns.
    """
    if path.is_dir():
        if not any(path.iterdir()):
            raise DataRefused(f"{field}: the folder {path.name} is empty")
        return False
    cifar = path.suffix == ".bin" and TASKS[task].reads_cifar
    if path.suffix in _PICKLES:
        raise DataRefused(f"{field}: {path.name} may be a pickle and is not opened; CIFAR-100 has a binary version")
    if path.suffix not in _FILE_SUFFIXES and not cifar:
        raise DataRefused(f"{field}: {path.name} is not read; give {', '.join(_FILE_SUFFIXES)} or a folder")
    if path.stat().st_size == 0:
        raise DataRefused(f"{field}: {path.name} is empty")
    if cifar and path.stat().st_size % CIFAR_RECORD:
        raise DataRefused(
            f"{field}: {path.name} is {path.stat().st_size:,} bytes, no multiple of a record's {CIFAR_RECORD:,} in "
            "CIFAR-100's binary version; download it again"
        )
    own = False
    try:
        # spreadsheets begin their CSV with a byte order mark, which is no part of the first column's name
        with path.open(encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8", newline="") as file:
            if path.suffix == ".csv":
                found = next(csv.reader(file), [])
            elif path.suffix == ".jsonl":
                found = list(json.loads(file.readline(_LINE_MAX)))
            elif cifar:
                found = [wanted[0], *CIFAR_LABELS]
            elif path.suffix == ".json":
                head = file.read(_JSON_HEAD)
                found, own = TASKS[task].columns_in_json(head, wanted), TASKS[task].is_dataset_json(head)
            else:
                return False
    except (ValueError, TypeError, RecursionError, csv.Error):
        raise DataRefused(f"{field}: the first line of {path.name} is not {path.suffix[1:].upper()}") from None
    for column in wanted:
        if column not in found:
            raise DataRefused(
                f"{field}: {path.name} has no column {column!r}; it has {', '.join(map(str, found)) or 'none'}. "
                f"Name the right ones in {field.rsplit('.', 1)[0]}"
            )
    return own
