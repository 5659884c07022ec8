"""Images of a table as pixels of one size: bytes until they are batched, or decoded then where all are too many.

Legend: b images of a batch, n rows of a table, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import BOX, ImageProcessor, is_plain, keeps_proportions, plain_image_processor
from mergenet_core.spec.job import DataSpec
from mergenet_core.tasks.data.tables import Table

STATISTICS_IMAGES = 2000
"""Images of the training split, evenly spaced, that mean and deviation are taken from; the same in every trial."""
READ_ROWS = 1000
"""Rows that are held in memory while they are decoded."""
HELD_BYTES = 2**31
"""A split whose pixels take more is decoded whenever it is batched."""
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Pixels:
    """Images of one size, normalised when they are batched."""

    read: Callable[[Tensor], Tensor]
    """Bytes for a plain processor, else what the processor made of them; of the images at these places."""
    scale_c: Tensor
    shift_c: Tensor

    def batch(self, index_b: Tensor) -> Tensor:
        """Normalised pixels. Shapes: (b, c, h, w)."""
        return self.read(index_b).float() * self.scale_c[:, None, None] + self.shift_c[:, None, None]


def check_channels(channels: int, field: str) -> None:
    """Refuse models that read neither grey nor colour images. Raises: `DataRefused`."""
    if channels not in MODES:
        raise DataRefused(f"{field}: images have 1 or 3 channels; the model's config has num_channels {channels}")


def fitted(
    processor: ImageProcessor | None, train: Table, rows: Tensor, data: DataSpec, channels: int
) -> ImageProcessor:
    """The processor at the document's size; without one, or with one for other channels, one made from these rows.

    One that keeps each image's proportions (ViLT's) is replaced by one that makes squares, with its mean and deviation.
    """
    if processor is None:
        return _measured(train, rows, data, channels)
    if not keeps_proportions(processor):
        if not is_plain(processor):
            return processor
        if len(processor.image_mean) != channels:
            return _measured(train, rows, data, channels)
    return plain_image_processor(data.image_size, processor.image_mean, processor.image_std, processor.resample)


def read_pixels(
    table: Table,
    data: DataSpec,
    rows: Tensor,
    processor: ImageProcessor,
    channels: int,
    *,
    held_bytes: int = HELD_BYTES,
) -> Pixels:
    """The images of these rows, as the processor makes them. Raises: `DataRefused`."""
    plain = is_plain(processor)
    each = channels * data.image_size**2 * (1 if plain else 4)
    decoded = bytes_of if plain else _processed

    def read(index_b: Tensor) -> Tensor:
        return decoded(table, data, rows[index_b], channels, processor)

    held = read(torch.arange(len(rows))) if len(rows) * each <= held_bytes else None
    found = read if held is None else partial(_of, held)
    if not plain:
        return Pixels(found, torch.ones(channels), torch.zeros(channels))
    mean_c, std_c = torch.tensor(processor.image_mean).float(), torch.tensor(processor.image_std).float()
    return Pixels(found, processor.rescale_factor / std_c, -mean_c / std_c)


def _of(held: Tensor, index_b: Tensor) -> Tensor:
    return held[index_b]


def distinct(table: Table, data: DataSpec) -> tuple[Tensor, Tensor]:
    """The first row of each image of the table, and which of these images stands in each row: one path, one image."""
    numbers: dict[str | bytes, int] = {}
    first: list[int] = []
    image_n: list[int] = []
    for row, value in enumerate(_column(table, data)[data.image]):
        number = numbers.setdefault(_key(value, row), len(numbers))
        if number == len(first):
            first.append(row)
        image_n.append(number)
    return torch.tensor(first), torch.tensor(image_n)


def _key(value: Any, row: int) -> str | bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()
    return value if isinstance(value, str) else f"row {row}"


def _measured(train: Table, rows: Tensor, data: DataSpec, channels: int) -> ImageProcessor:
    rows = rows[:: max(1, -(-len(rows) // STATISTICS_IMAGES))]
    plain = plain_image_processor(data.image_size, [0.0] * channels, [1.0] * channels, BOX)
    pixels = bytes_of(train, data, rows, channels, plain).double() / 255
    deviation_c = pixels.std(dim=(0, 2, 3), correction=0).clamp(min=1 / 255)
    mean = [round(value, 6) for value in pixels.mean(dim=(0, 2, 3)).tolist()]
    return plain_image_processor(data.image_size, mean, [round(value, 6) for value in deviation_c.tolist()])


def _processed(table: Table, data: DataSpec, rows: Tensor, channels: int, processor: ImageProcessor) -> Tensor:
    made = [processor(image, return_tensors="pt")["pixel_values"][0] for image in _images(table, data, rows, channels)]
    if {tuple(one.shape[1:]) for one in made} != {(data.image_size, data.image_size)}:
        raise DataRefused(
            f"{table.field}: the model's image processor makes images of {tuple(made[0].shape[1:])}; "
            f"image_size is {data.image_size}. Set image_size to what the model was trained on"
        )
    return torch.stack(made)


def bytes_of(table: Table, data: DataSpec, rows: Tensor, channels: int, processor: ImageProcessor) -> Tensor:
    """The images of these rows as bytes, resized. Shapes: (rows, c, h, w)."""
    size = data.image_size
    pixels = torch.empty((len(rows), channels, size, size), dtype=torch.uint8)
    for place, image in enumerate(_images(table, data, rows, channels)):
        right = image.size == (size, size)
        resized = image if right else image.resize((size, size), Image.Resampling(processor.resample))
        pixels[place] = torch.from_numpy(np.array(resized).reshape(size, size, channels)).permute(2, 0, 1)
    return pixels


def _column(table: Table, data: DataSpec) -> datasets.Dataset:
    column = table.rows.select_columns([data.image])
    if isinstance(column.features[data.image], datasets.Image):
        column = column.cast_column(data.image, datasets.Image(decode=False))
    return column


def _images(table: Table, data: DataSpec, rows: Tensor, channels: int) -> Iterator[Image.Image]:
    column = _column(table, data)
    for part in torch.split(rows, READ_ROWS):
        for row, value in zip(part.tolist(), column.select(part.tolist())[data.image][:], strict=True):
            content = _content(value, table, row)
            try:
                with Image.open(io.BytesIO(content)) as image:
                    yield image.convert(MODES[channels])
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataRefused(f"{table.field}: row {row} is not an image that can be read: {error}") from None


def _content(value: Mapping[str, Any] | bytes | str | None, table: Table, row: int) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and table.folder is not None:
        path = (table.folder / Path(value)).resolve()
        # a table may name any path; only files that lie beside it are opened
        if path.is_relative_to(table.folder.resolve()) and path.is_file():
            return path.read_bytes()
        raise DataRefused(f"{table.field}: row {row} names {value!r}, which is not a file below the table's folder")
    raise DataRefused(f"{table.field}: row {row} has no image; give bytes or a path beside the table")
