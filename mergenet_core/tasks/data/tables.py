"""Tables from files, folders or the hub: read and checked; a classification's labels as numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from torch import Tensor

from mergenet_core.errors import DataRefused, PathRefused
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.storage.published_folder import sha256
from mergenet_core.tasks.data.cifar import read_cifar
from mergenet_core.tasks.data.sampling import draw

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
UNLABELLED = "unsup"
"""The folder of IMDb's archive whose reviews have no label."""


@dataclass(frozen=True)
class Table:
    """One split as it was read."""

    rows: datasets.Dataset
    field: str
    """Where the job document names it."""
    sha256: str
    """Of the file, or of all files of a folder in order; for the hub, the revision."""
    folder: Path | None
    """What paths inside the table may point into; None for the hub."""


@dataclass(frozen=True)
class Splits:
    """Three tables, the label of each row as a number, and which rows of `train` are used for what."""

    train: Table
    validation: Table
    test: Table
    labels: tuple[str, ...]
    train_labels_n: Tensor
    validation_labels_n: Tensor
    test_labels_n: Tensor
    train_rows: Tensor
    validation_rows: Tensor

    def facts(self) -> dict[str, Any]:
        """Per split: the examples used, and the hash of what was read."""
        return {
            "train": {"examples": len(self.train_rows), "of": len(self.train_labels_n), "sha256": self.train.sha256},
            "validation": {"examples": len(self.validation_rows), "sha256": self.validation.sha256},
            "test": {"examples": len(self.test_labels_n), "sha256": self.test.sha256},
        }


def read_splits(data: DataSpec, column: str, roots: Roots, *, seed: int, field: str) -> Splits:
    """Read and check the splits, and draw the trial's subset and its validation examples by `seed`.

    Raises: `DataRefused`, `PathRefused`.
    """
    train = read(data, "train", (column, data.label), roots, field)
    names_n = _names(train, data.label)
    labels = _label_space(names_n, train, data.label)
    numbers_n = _numbers(names_n, labels, train.field)
    test = read(data, "test", (column, data.label), roots, field)
    train_rows, validation_rows = draw(data, len(numbers_n), seed=seed, field=field)
    validation, validation_numbers_n = train, numbers_n
    if data.validation is not None:
        validation = read(data, "validation", (column, data.label), roots, field)
        validation_numbers_n = _numbers(_names(validation, data.label), labels, validation.field)
        validation_rows = torch.arange(len(validation_numbers_n))
    return Splits(
        train=train,
        validation=validation,
        test=test,
        labels=labels,
        train_labels_n=numbers_n,
        validation_labels_n=validation_numbers_n,
        test_labels_n=_numbers(_names(test, data.label), labels, test.field),
        train_rows=train_rows,
        validation_rows=validation_rows,
    )


def read(data: DataSpec, split: str, columns: tuple[str, ...], roots: Roots, field: str) -> Table:
    """Read one split and check that it has rows and the columns. Raises: `DataRefused`, `PathRefused`."""
    given = getattr(data, split)
    where = f"{field}.{split}"
    if data.hub is not None:
        table = _from_hub(data, given, roots, where)
    else:
        path = roots.dataset(given, where)
        table = _from_folder(path, data, where) if path.is_dir() else _from_files([path], path.parent, where, data)
    if len(table.rows) == 0:
        raise DataRefused(f"{where}: {given} has no examples; give a file with at least one row")
    for name in columns:
        if name not in table.rows.column_names:
            there = ", ".join(table.rows.column_names)
            raise DataRefused(f"{where}: {given} has no column {name!r}; its columns are {there}. Name the right one")
    return table


def texts(table: Table, column: str, rows: Tensor) -> list[str]:
    """The texts of these rows. Raises: `DataRefused` where a row of the table, whether of these or not, has none."""
    found = table.rows[column][:]
    for row, text in enumerate(found):
        if not isinstance(text, str):
            raise DataRefused(f"{table.field}: row {row} has {text!r} in column {column!r}; every text is a string")
    return [found[row] for row in rows.tolist()]


def _from_files(paths: list[Path], folder: Path, where: str, data: DataSpec) -> Table:
    if paths[0].suffix == ".bin":
        return Table(read_cifar(paths[0], data.image, where), where, hash_of(paths), folder)
    kind = BUILDERS.get(paths[0].suffix.lower())
    if kind is None:
        allowed = ", ".join(BUILDERS)
        raise DataRefused(f"{where}: {paths[0].name} is not a format that is read ({allowed}, or a folder)")
    if sum(path.stat().st_size for path in paths) == 0:
        raise DataRefused(f"{where}: {paths[0].name} is empty; give a file with at least one row")
    files = [str(path) for path in paths]
    try:
        rows = datasets.load_dataset(kind, data_files={"split": files}, split="split")
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, OSError, TypeError) as error:
        if "corresponds to no data" in str(error):  # a table of columns without rows
            raise DataRefused(f"{where}: {paths[0].name} has no examples; give a file with at least one row") from None
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        raise DataRefused(f"{where}: {paths[0].name} cannot be read as {kind}: {reason}") from error
    return Table(rows, where, hash_of(paths), folder)


def _from_folder(folder: Path, data: DataSpec, where: str) -> Table:
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in BUILDERS)
    if tables:
        return _from_files(tables, folder, where, data)
    labelled = sorted(path for path in folder.glob("*/*") if path.parent.name != UNLABELLED)
    images = [path for path in labelled if path.suffix.lower() in IMAGES]
    files = images or [path for path in labelled if path.suffix.lower() == ".txt"]
    if not files:
        raise DataRefused(
            f"{where}: {folder.name} holds neither tables ({', '.join(BUILDERS)}) nor images ({', '.join(IMAGES)}) or "
            "texts (.txt) in one folder a label"
        )
    rows: dict[str, list[Any]] = {data.label: [path.parent.name for path in files]}
    if images:
        rows[data.image] = [{"bytes": None, "path": path.relative_to(folder).as_posix()} for path in images]
    else:
        rows[data.text] = [_text(path, where) for path in files]
    return Table(datasets.Dataset.from_dict(rows), where, hash_of(files), folder)


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataRefused(f"{where}: {path.parent.name}/{path.name} is not UTF-8; convert it") from None


def _from_hub(data: DataSpec, split: str, roots: Roots, where: str) -> Table:
    if not roots.hub:
        raise PathRefused(
            f"{where}: the hub is closed here; save {data.hub} as parquet below the data roots, name that"
        )
    try:
        rows = datasets.load_dataset(data.hub, revision=data.revision, split=split)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise DataRefused(f"{where}: {data.hub}, split {split!r}: {' '.join(str(error).split())[:300]}") from error
    return Table(rows, where, str(data.revision), None)


def hash_of(paths: Iterable[Path]) -> str:
    """Of one file, or of all of them in order."""
    hashes = [sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _label_space(names_n: list[str], table: Table, column: str) -> tuple[str, ...]:
    present = set(names_n)
    if len(present) < 2:
        raise DataRefused(f"{table.field}: every example is labelled {present.pop()!r}; at least two labels are needed")
    feature = table.rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    whole = all(name.removeprefix("-").isdecimal() for name in present)
    return tuple(sorted(present, key=int) if whole else sorted(present))


def _numbers(names_n: list[str], labels: tuple[str, ...], field: str) -> Tensor:
    rows = {name: row for row, name in enumerate(labels)}
    unknown = sorted(set(names_n) - set(labels))
    if unknown:
        raise DataRefused(
            f"{field}: label {unknown[0]!r} does not occur in the training split, whose labels are "
            f"{', '.join(labels[:10])}{', …' if len(labels) > 10 else ''}; give splits with the same labels"
        )
    return torch.tensor([rows[name] for name in names_n])


def _names(table: Table, column: str) -> list[str]:
    feature = table.rows.features[column]
    classes = feature.names if isinstance(feature, datasets.ClassLabel) else None
    names = []
    for row, value in enumerate(table.rows[column][:]):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise DataRefused(f"{table.field}: row {row} has no label ({value}); remove the row or label it")
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        if not isinstance(whole, (str, int)):
            raise DataRefused(f"{table.field}: row {row} has label {value!r}; a label is a string or a whole number")
        if classes is not None and not 0 <= int(whole) < len(classes):
            raise DataRefused(f"{table.field}: row {row} is unlabelled ({value}); give a split with labels")
        names.append(classes[int(whole)] if classes is not None else str(whole))
    return names
