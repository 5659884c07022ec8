"""Images as pixels of one size: held in memory as bytes until they are batched, or decoded then where they are many.

Legend: b images of a batch, n images of a split, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import BOX, ImageProcessor, is_plain, keeps_proportions, plain_image_processor
from mergenet_core.tasks.data.images import ImageColumn

STATISTICS_IMAGES = 2000
"""Images of the training split, evenly spaced, whose mean and deviation are taken; the same ones in every trial."""
HELD_BYTES = 2**31
"""The images of a split whose pixels take more are decoded each time they are batched."""


@dataclass(frozen=True)
class Pixels:
    """Images of one size, normalised when they are batched."""

    read: Callable[[Tensor], Tensor]
    """The images with these indices: as bytes for a plain processor, else as the processor made them."""
    count: int
    scale_c: Tensor
    shift_c: Tensor

    def batch(self, index_b: Tensor) -> Tensor:
        """Normalised pixels. Shapes: (b, c, h, w)."""
        return self.read(index_b).float() * self.scale_c[:, None, None] + self.shift_c[:, None, None]


def fit_processor(processor: ImageProcessor | None, train: ImageColumn, size: int, channels: int) -> ImageProcessor:
    """The processor at the document's size; without one, or with one for other channels, one made from these images.

    One that keeps each image's proportions (ViLT's) is replaced by one that makes squares, with its mean and deviation.
    """
    if processor is None:
        return _measured(train, size, channels)
    if not keeps_proportions(processor):
        if not is_plain(processor):
            return processor
        if len(processor.image_mean) != channels:
            return _measured(train, size, channels)
    return plain_image_processor(size, processor.image_mean, processor.image_std, processor.resample)


def read_pixels(images: ImageColumn, processor: ImageProcessor, size: int, channels: int) -> Pixels:
    """The images as the processor makes them. Raises: `DataRefused`."""
    plain = is_plain(processor)
    image_bytes = channels * size**2 * (1 if plain else 4)

    def decode(index_b: Tensor) -> Tensor:
        selected = images.select(index_b)
        if plain:
            return _resized(selected, size, channels, processor.resample)
        return _processed(selected, size, channels, processor)

    read: Callable[[Tensor], Tensor] = decode
    if len(images) * image_bytes <= HELD_BYTES:
        read = decode(torch.arange(len(images))).__getitem__
    if not plain:
        return Pixels(read, len(images), torch.ones(channels), torch.zeros(channels))
    mean_c, std_c = torch.tensor(processor.image_mean).float(), torch.tensor(processor.image_std).float()
    return Pixels(read, len(images), processor.rescale_factor / std_c, -mean_c / std_c)


def _measured(train: ImageColumn, size: int, channels: int) -> ImageProcessor:
    """A plain processor with the mean and deviation of the training images."""
    every = max(1, -(-len(train) // STATISTICS_IMAGES))
    sample = train.select(torch.arange(0, len(train), every))
    pixels_nchw = _resized(sample, size, channels, BOX).double() / 255
    deviation_c = pixels_nchw.std(dim=(0, 2, 3), correction=0).clamp(min=1 / 255)
    mean = [round(value, 6) for value in pixels_nchw.mean(dim=(0, 2, 3)).tolist()]
    return plain_image_processor(size, mean, [round(value, 6) for value in deviation_c.tolist()])


def _processed(images: ImageColumn, size: int, channels: int, processor: ImageProcessor) -> Tensor:
    """The images as the processor makes them. Shapes: (n, c, h, w)."""
    made = [processor(image, return_tensors="pt")["pixel_values"][0] for image in images.decoded(channels)]
    if {tuple(one.shape[1:]) for one in made} != {(size, size)}:
        raise DataRefused(
            f"{images.table.field}: the model's image processor makes images of {tuple(made[0].shape[1:])}; "
            f"image_size is {size}. Set image_size to what the model was trained on"
        )
    return torch.stack(made)


def _resized(images: ImageColumn, size: int, channels: int, resample: int) -> Tensor:
    """The images as bytes. Shapes: (n, c, h, w)."""
    pixels = torch.empty((len(images), channels, size, size), dtype=torch.uint8)
    for index, image in enumerate(images.decoded(channels)):
        fits = image.size == (size, size)
        resized = image if fits else image.resize((size, size), Image.Resampling(resample))
        pixels[index] = torch.from_numpy(np.array(resized).reshape(size, size, channels)).permute(2, 0, 1)
    return pixels
