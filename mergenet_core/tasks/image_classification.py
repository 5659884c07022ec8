"""Image classification: an image column and a label column become normalised pixels and numbers.

Legend: b examples of a batch, n examples of a split, c channels, h height, w width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.tasks.data.augment import crop_flip, draw_partners, mix
from mergenet_core.tasks.data.images import ImageColumn, check_channels
from mergenet_core.tasks.data.labels import Labelled, read_labelled
from mergenet_core.tasks.data.pixels import Pixels, fit_processor, read_pixels
from mergenet_core.tasks.data.tables import Table, read_table
from mergenet_core.tasks.data.unlabelled import read_unlabelled
from mergenet_core.tasks.task import Classification, TaskInputs


@dataclass(frozen=True)
class PixelExamples:
    """A split of images of one size."""

    pixels: Pixels
    labels: Tensor | None
    """None for unlabelled images."""
    augments: bool = False

    def __len__(self) -> int:
        """How many images there are."""
        return self.pixels.count

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Normalised pixels, and labels where there are any. Shapes: (b, c, h, w), labels (b)."""
        inputs = {"pixel_values": self.pixels.batch(index_b)}
        return inputs if self.labels is None else {**inputs, "labels": self.labels[index_b]}

    def augmented_batch(self, index_b: Tensor, seed: int) -> dict[str, Tensor]:
        """The batch in training: if the split augments, each image is shifted and mirrored by `seed` and its index."""
        batch = self.batch(index_b)
        if self.augments:
            batch["pixel_values"] = crop_flip(batch["pixel_values"], index_b, len(self), seed, self.pixels.shift_c)
        return batch

    def with_copies(self, index_b: Tensor, seed: int) -> dict[str, Tensor]:
        """The images, then each of them mixed with another, both shifted and mirrored, by `seed` and its index.

        Training sees the images as they are as well, because BatchNorm's statistics are used on such ones.
        Shapes: (2 · b, c, h, w).
        """
        partner_n, share_n = draw_partners(len(self), seed)
        black_c = self.pixels.shift_c
        first, second = (
            crop_flip(self.pixels.batch(image_b), image_b, len(self), seed + number, black_c)
            for number, image_b in enumerate((index_b, partner_n[index_b]), start=1)
        )
        return {"pixel_values": torch.cat([self.pixels.batch(index_b), mix(first, second, share_n[index_b])])}

    def evaluation_order(self) -> Tensor:
        """As they were read: all have one size."""
        return torch.arange(len(self))


def load_image_classification(inputs: TaskInputs) -> Classification:
    """The task's examples for one trial, at the size that the job document asks for.

    Without a processor, or with one for another number of channels, one is made from the training split's statistics.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, channels = inputs.data, inputs.channels
    check_channels(channels, inputs.field)
    splits, labels = read_labelled(inputs, data.image)
    train_table = splits.train.table
    all_images = ImageColumn(train_table, data.image, torch.arange(len(train_table)))
    processor = fit_processor(inputs.images, all_images, data.image_size, channels)

    def pixels(table: Table, rows: Tensor) -> Pixels:
        return read_pixels(ImageColumn(table, data.image, rows), processor, data.image_size, channels)

    def examples(split: Labelled, rows: Tensor, augments: bool = False) -> PixelExamples:
        return PixelExamples(pixels(split.table, rows), split.labels_n[rows], augments)

    pool = read_unlabelled(
        inputs, splits.map(lambda split: split.table), lambda name: read_table(inputs, name, (data.image,))
    )
    return Classification(
        labels=labels,
        train=examples(splits.train, splits.train_rows, data.augment == "crop-flip"),
        validation=examples(splits.validation, splits.validation_rows),
        test=examples(splits.test, splits.test_rows),
        processor=processor,
        unlabelled=PixelExamples(pixels(pool.split, pool.rows), None) if pool else None,
        settings={"image_size": data.image_size, "num_channels": channels},
        data_summary=splits.summary() | (pool.summary() if pool else {}),
    )
