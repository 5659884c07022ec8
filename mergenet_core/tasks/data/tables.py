"""Tables of examples from files, folders or the hub, read and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
from torch import Tensor

from mergenet_core.errors import DataRefused, PathRefused
from mergenet_core.planning.data_files import UNLABELLED_FOLDER
from mergenet_core.spec.data import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.storage.published_folder import sha256
from mergenet_core.tasks.data.cifar import read_cifar
from mergenet_core.tasks.task import TaskInputs

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Table:
    """One split as it was read."""

    rows: datasets.Dataset
    field: str
    """Where the job document names it, such as `target.data.train`; errors begin with it."""
    sha256: str
    """The hash of the file, or of all files of a folder in order; for the hub, the revision."""
    folder: Path | None
    """The folder that paths in the table may point into; None for the hub."""

    def __len__(self) -> int:
        """Rows of the table."""
        return len(self.rows)


def read_table(inputs: TaskInputs, split: str, columns: tuple[str, ...]) -> Table:
    """Read one split and check that it has rows and the columns. Raises: `DataRefused`, `PathRefused`."""
    data, where = inputs.data, f"{inputs.field}.{split}"
    given: str = getattr(data, split)
    if data.hub is not None:
        table = _from_hub(data, given, inputs.roots, where)
    else:
        path = inputs.roots.dataset(given, where)
        folder = _from_folder if split != "unlabelled" else _from_unlabelled_folder
        table = folder(path, data, where) if path.is_dir() else _from_files([path], path.parent, where, data)
    if len(table) == 0:
        raise DataRefused(f"{where}: {given} has no examples; give a file with at least one row")
    for name in columns:
        if name not in table.rows.column_names:
            there = ", ".join(table.rows.column_names)
            raise DataRefused(f"{where}: {given} has no column {name!r}; its columns are {there}. Name the right one")
    return table


def texts(table: Table, column: str, rows: Tensor) -> list[str]:
    """The texts of these rows. Raises: `DataRefused` where any row of the table has none."""
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
    labelled = sorted(path for path in folder.glob("*/*") if path.parent.name != UNLABELLED_FOLDER)
    images = [path for path in labelled if path.suffix.lower() in IMAGES]
    files = images or [path for path in labelled if path.suffix.lower() == ".txt"]
    if not files:
        raise DataRefused(
            f"{where}: {folder.name} holds neither tables ({', '.join(BUILDERS)}) nor images ({', '.join(IMAGES)}) or "
            "texts (.txt) in one folder a label"
        )
    rows = _rows_of_files(files, folder, data, where) | {data.label: [path.parent.name for path in files]}
    return Table(datasets.Dataset.from_dict(rows), where, hash_of(files), folder)


def _from_unlabelled_folder(folder: Path, data: DataSpec, where: str) -> Table:
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in BUILDERS)
    if tables:
        return _from_files(tables, folder, where, data)
    found = sorted([*folder.glob("*"), *folder.glob("*/*")])
    images = [path for path in found if path.suffix.lower() in IMAGES]
    files = images or [path for path in found if path.suffix.lower() == ".txt"]
    if not files:
        raise DataRefused(
            f"{where}: {folder.name} holds neither tables ({', '.join(BUILDERS)}) nor images ({', '.join(IMAGES)}) or "
            "texts (.txt), in it or in its folders"
        )
    return Table(datasets.Dataset.from_dict(_rows_of_files(files, folder, data, where)), where, hash_of(files), folder)


def _rows_of_files(
    files: list[Path], folder: Path, data: DataSpec, where: str
) -> dict[str, list[str] | list[dict[str, str | None]]]:
    """A column with the images by their paths, or with the texts."""
    if files[0].suffix.lower() in IMAGES:
        return {data.image: [{"bytes": None, "path": path.relative_to(folder).as_posix()} for path in files]}
    return {data.text: [_text(path, where) for path in files]}


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
    """The SHA-256 of one file, or of the hashes of several in order."""
    hashes = [sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
