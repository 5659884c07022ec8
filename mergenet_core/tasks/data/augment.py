"""Augmentation of training images: shifted and mirrored.

Legend: b images of a batch, n examples of a split, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = 4
"""The largest shift in each direction, in pixels."""


def mix(first_bchw: Tensor, second_bchw: Tensor, shares_b: Tensor) -> Tensor:
    """The weighted mean of two images each. Equation: share · first + (1 − share) · second."""
    shares_b111 = shares_b[:, None, None, None]
    return shares_b111 * first_bchw + (1 - shares_b111) * second_bchw


def draw_partners(examples: int, draw: int) -> tuple[Tensor, Tensor]:
    """For each of n examples another one to mix it with, and the example's own share between 0 and 1."""
    generator = torch.Generator().manual_seed(draw)
    return torch.randint(examples, (examples,), generator=generator), torch.rand(examples, generator=generator)


def crop_flip(pixels_bchw: Tensor, index_b: Tensor, examples: int, seed: int, black_c: Tensor) -> Tensor:
    """Shift each image, filling with black, and mirror half of them; `seed` and the image's index decide.

    Random numbers are drawn for all n examples, so that an image is changed alike in any batch, process or order.
    """
    generator = torch.Generator().manual_seed(seed)
    moves_n2 = torch.randint(0, 2 * PADDING + 1, (examples, 2), generator=generator)
    mirrored_n = torch.rand(examples, generator=generator) < 0.5
    height, width = pixels_bchw.shape[2:]
    down_b, right_b = moves_n2[index_b].unbind(1)
    rows_bh = down_b[:, None] + torch.arange(height)
    columns_bw = right_b[:, None] + torch.where(
        mirrored_n[index_b, None], torch.arange(width - 1, -1, -1), torch.arange(width)
    )
    black_c11 = black_c[:, None, None]
    # padded with zeros once black is zero: pixels are normalised by now
    padded = torch.nn.functional.pad(pixels_bchw - black_c11, [PADDING] * 4)
    batch_b111 = torch.arange(len(index_b))[:, None, None, None]
    channels_c11 = torch.arange(pixels_bchw.shape[1])[:, None, None]
    return padded[batch_b111, channels_c11, rows_bh[:, None, :, None], columns_bw[:, None, None, :]] + black_c11
