"""Images in a column of a table: as bytes in its rows, or as paths relative to the table's folder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import datasets
import torch
from PIL import Image
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.tasks.data.tables import Table

READ_ROWS = 1000
"""Rows that are held in memory while they are decoded."""
MODES = {1: "L", 3: "RGB"}
"""PIL's name of an image with so many channels."""
Cell: TypeAlias = Mapping[str, bytes | str | None] | bytes | str | None
"""What a row holds: bytes, a path, or an object with one of them."""


@dataclass(frozen=True)
class ImageColumn:
    """Some images of a table."""

    table: Table
    column: str
    rows: Tensor
    """The table's row of each image."""

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.rows)

    def select(self, index_b: Tensor) -> ImageColumn:
        """The images with these indices."""
        return replace(self, rows=self.rows[index_b])

    def decoded(self, channels: int) -> Iterator[Image.Image]:
        """The images one by one, with so many channels. Raises: `DataRefused` for one that cannot be read."""
        cells = _undecoded(self.table, self.column)
        for rows in torch.split(self.rows, READ_ROWS):
            for row, cell in zip(rows.tolist(), cells.select(rows.tolist())[self.column][:], strict=True):
                content = _content(cell, self.table, row)
                try:
                    with Image.open(io.BytesIO(content)) as image:
                        yield image.convert(MODES[channels])
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    raise DataRefused(
                        f"{self.table.field}: row {row} is not an image that can be read: {error}"
                    ) from None


def distinct_images(table: Table, column: str) -> tuple[ImageColumn, Tensor]:
    """The different images of a table, and for each row the index of its image among them.

    Rows with the same path or the same bytes have the same image.
    """
    indices: dict[str | bytes, int] = {}
    first_rows: list[int] = []
    image_n: list[int] = []
    for row, cell in enumerate(_undecoded(table, column)[column]):
        index = indices.setdefault(_identity(cell, row), len(indices))
        if index == len(first_rows):
            first_rows.append(row)
        image_n.append(index)
    return ImageColumn(table, column, torch.tensor(first_rows)), torch.tensor(image_n)


def images_in_folder(names: Sequence[str], column: str, folder: Path, field: str) -> ImageColumn:
    """The images with these file names in a folder. Raises: `DataRefused` naming the first that is missing."""
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise DataRefused(f"{field}: the image {missing} is not in {folder.name}; copy all images of the split there")
    rows = datasets.Dataset.from_dict({column: [{"bytes": None, "path": name} for name in names]})
    return ImageColumn(Table(rows, field, "", folder), column, torch.arange(len(names)))


def check_channels(channels: int, field: str) -> None:
    """Refuse models that read neither grey nor colour images. Raises: `DataRefused`."""
    if channels not in MODES:
        raise DataRefused(f"{field}: images have 1 or 3 channels; the model's config has num_channels {channels}")


def _undecoded(table: Table, column: str) -> datasets.Dataset:
    rows = table.rows.select_columns([column])
    if isinstance(rows.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _identity(cell: Cell, row: int) -> str | bytes:
    value = _bytes_or_path(cell)
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()
    return value if isinstance(value, str) else f"row {row}"


def _bytes_or_path(cell: Cell) -> bytes | str | None:
    return cell.get("bytes") or cell.get("path") if isinstance(cell, Mapping) else cell


def _content(cell: Cell, table: Table, row: int) -> bytes:
    value = _bytes_or_path(cell)
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and table.folder is not None:
        path = (table.folder / Path(value)).resolve()
        # a table may name any path; only files below its folder are opened
        if path.is_relative_to(table.folder.resolve()) and path.is_file():
            return path.read_bytes()
        raise DataRefused(f"{table.field}: row {row} names {value!r}, which is not a file below the table's folder")
    raise DataRefused(f"{table.field}: row {row} has no image; give bytes or a path relative to the table's folder")
