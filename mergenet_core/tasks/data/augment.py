"""Images shifted and mirrored, for training on few of them.

Legend: b images of a batch, n examples of a split, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = 4
"""Pixels that an image may move in each direction."""


def crop_flip(pixels_bchw: Tensor, index_b: Tensor, examples: int, draw: int, black_c: Tensor) -> Tensor:
    """Each image cut out of itself padded with black, and mirrored or not, by `draw` and its place in the split.

    All n examples are drawn for, so that an image's fate is the same in whatever batch, process or order it comes.
    """
    generator = torch.Generator().manual_seed(draw)
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
