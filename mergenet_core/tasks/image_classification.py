"""Image classification: an image column and a label column become normalised pixels and numbers.

Legend: b examples of a batch, n examples of a split, c channels, h height, w width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergenet_core.tasks.data.augment import crop_flip
from mergenet_core.tasks.data.pixels import Pixels, check_channels, fitted, read_pixels
from mergenet_core.tasks.data.tables import Table, read_splits
from mergenet_core.tasks.task import Classification, TaskInputs


@dataclass(frozen=True)
class PixelExamples:
    """A split of images of one size."""

    pixels: Pixels
    labels: Tensor
    augment: bool = False

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Normalised pixels and labels. Shapes: (b, c, h, w), labels (b)."""
        return {"pixel_values": self.pixels.batch(index_b), "labels": self.labels[index_b]}

    def shown(self, index_b: Tensor, draw: int) -> dict[str, Tensor]:
        """The batch as training sees it: with `augment`, shifted and mirrored by `draw` and the example alone."""
        batch = self.batch(index_b)
        if self.augment:
            batch["pixel_values"] = crop_flip(batch["pixel_values"], index_b, len(self), draw, self.pixels.shift_c)
        return batch

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
    splits = read_splits(data, data.image, inputs.roots, seed=inputs.seed, field=inputs.field)
    processor = fitted(inputs.images, splits.train, torch.arange(len(splits.train_labels_n)), data, channels)

    def examples(table: Table, rows: Tensor, labels_n: Tensor, augment: bool = False) -> PixelExamples:
        return PixelExamples(read_pixels(table, data, rows, processor, channels), labels_n[rows], augment)

    return Classification(
        labels=splits.labels,
        train=examples(splits.train, splits.train_rows, splits.train_labels_n, data.augment == "crop-flip"),
        validation=examples(splits.validation, splits.validation_rows, splits.validation_labels_n),
        test=examples(splits.test, torch.arange(len(splits.test_labels_n)), splits.test_labels_n),
        processor=processor,
        settings={"image_size": data.image_size, "num_channels": channels},
        facts=splits.facts(),
    )
