"""Image classification: an image column and a label column become pixels, kept as bytes until they are batched.

Legend: b examples of a batch, n examples of a split, c channels, h height, w width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.jobs.paths import Roots
from mergenet_core.jobs.spec import DataSpec
from mergenet_core.models.processors import BOX, is_plain, plain_image_processor
from mergenet_core.tasks.tables import Splits, Table, read_splits
from mergenet_core.tasks.task import Classification, Task

STATISTICS_IMAGES = 2000
"""Images of the training split, evenly spaced, that mean and deviation are taken from; the same in every trial."""
READ_ROWS = 1000
"""Rows that are held in memory while they are decoded."""
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class PixelExamples:
    """A split of images of one size, normalised when they are batched."""

    pixels_nchw: Tensor
    """Bytes for a plain processor, else what the processor made of them."""
    scale_c: Tensor
    shift_c: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Normalised pixels and labels. Shapes: (b, c, h, w), labels (b)."""
        pixels = self.pixels_nchw[index_b].float() * self.scale_c[:, None, None] + self.shift_c[:, None, None]
        return {"pixel_values": pixels, "labels": self.labels[index_b]}

    def evaluation_order(self) -> Tensor:
        """As they were read: all have one size."""
        return torch.arange(len(self))


def load_images(data: DataSpec, processor: Any, roots: Roots, *, seed: int, field: str, channels: int) -> Task:
    """The task's examples for one trial, at the size that the job document asks for.

    Without a processor, or with one for another number of channels, one is made from the training split's statistics.

    Raises: `DataRefused`, `PathRefused`.
    """
    if channels not in MODES:
        raise DataRefused(f"{field}: images have 1 or 3 channels; the model's config has num_channels {channels}")
    splits = read_splits(data, data.image, roots, seed=seed, field=field)
    processor = _fitted(processor, splits, data, channels)

    def examples(table: Table, rows: Tensor, labels_n: Tensor) -> PixelExamples:
        return _decode(table, data, rows, labels_n[rows], processor, channels)

    return Classification(
        labels=splits.labels,
        train=examples(splits.train, splits.train_rows, splits.train_labels_n),
        validation=examples(splits.validation, splits.validation_rows, splits.validation_labels_n),
        test=examples(splits.test, torch.arange(len(splits.test_labels_n)), splits.test_labels_n),
        processor=processor,
        settings={"image_size": data.image_size, "num_channels": channels},
        facts=splits.facts(),
    )


def _fitted(processor: Any, splits: Splits, data: DataSpec, channels: int) -> Any:
    if processor is None or (is_plain(processor) and len(processor.image_mean) != channels):
        return _measured(splits, data, channels)
    if is_plain(processor):
        return plain_image_processor(data.image_size, processor.image_mean, processor.image_std, processor.resample)
    return processor


def _measured(splits: Splits, data: DataSpec, channels: int) -> Any:
    total = len(splits.train_labels_n)
    rows = torch.arange(0, total, max(1, -(-total // STATISTICS_IMAGES)))
    pixels = _bytes(splits.train, data, rows, channels, BOX).double() / 255
    deviation_c = pixels.std(dim=(0, 2, 3), correction=0).clamp(min=1 / 255)
    mean = [round(value, 6) for value in pixels.mean(dim=(0, 2, 3)).tolist()]
    return plain_image_processor(data.image_size, mean, [round(value, 6) for value in deviation_c.tolist()])


def _decode(
    table: Table, data: DataSpec, rows: Tensor, labels_n: Tensor, processor: Any, channels: int
) -> PixelExamples:
    if is_plain(processor):
        scale_c, shift_c = _normalisation(processor)
        return PixelExamples(_bytes(table, data, rows, channels, processor.resample), scale_c, shift_c, labels_n)
    made = [processor(image, return_tensors="pt")["pixel_values"][0] for image in _images(table, data, rows, channels)]
    if {tuple(one.shape[1:]) for one in made} != {(data.image_size, data.image_size)}:
        raise DataRefused(
            f"{table.field}: the model's image processor makes images of {tuple(made[0].shape[1:])}; "
            f"image_size is {data.image_size}. Set image_size to what the model was trained on"
        )
    return PixelExamples(torch.stack(made), torch.ones(channels), torch.zeros(channels), labels_n)


def _normalisation(processor: Any) -> tuple[Tensor, Tensor]:
    mean_c, std_c = torch.tensor(processor.image_mean).float(), torch.tensor(processor.image_std).float()
    return processor.rescale_factor / std_c, -mean_c / std_c


def _bytes(table: Table, data: DataSpec, rows: Tensor, channels: int, resample: int) -> Tensor:
    size = data.image_size
    pixels = torch.empty((len(rows), channels, size, size), dtype=torch.uint8)
    for place, image in enumerate(_images(table, data, rows, channels)):
        resized = image if image.size == (size, size) else image.resize((size, size), Image.Resampling(resample))
        pixels[place] = torch.from_numpy(np.array(resized).reshape(size, size, channels)).permute(2, 0, 1)
    return pixels


def _images(table: Table, data: DataSpec, rows: Tensor, channels: int) -> Iterator[Image.Image]:
    column = table.rows.select_columns([data.image])
    if isinstance(column.features[data.image], datasets.Image):
        column = column.cast_column(data.image, datasets.Image(decode=False))
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
