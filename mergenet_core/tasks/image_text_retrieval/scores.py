"""Recall at 1, 5 and 10 between images and their captions, over a whole split.

Legend: n images, m captions, d dimensions of the joint space, s images or captions of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RANKS = (1, 5, 10)
BLOCK = 256
"""Rows whose similarities to all images or captions are in memory at a time."""


def recalls(images_nd: Tensor, captions_md: Tensor, image_m: Tensor) -> dict[str, float]:
    """How often one of an image's captions, and a caption's image, is among the 1, 5 and 10 nearest; and the mean.

    Equation: R@k = share of queries with fewer than k wrong candidates at least as near as the nearest right one. Ties
    count against the model: one that gives all the same embedding finds nothing.
    """
    found = {
        **_recalls("image_to_text", _wrong_before_image(images_nd, captions_md, image_m)),
        **_recalls("text_to_image", _wrong_before_caption(images_nd, captions_md, image_m)),
    }
    return {"mean_recall": sum(found.values()) / len(found), **found}


def image_terms(images_nd: Tensor, captions_md: Tensor, image_m: Tensor) -> Tensor:
    """What each image and its captions add to the mean recall, which is the mean of all terms. Shapes: (n).

    Equation: half the image's mean hit over the ranks, and half the sum of its captions', times n / m.
    """
    image_n = _hits(_wrong_before_image(images_nd, captions_md, image_m))
    caption_m = _hits(_wrong_before_caption(images_nd, captions_md, image_m))
    captions_n = torch.zeros_like(image_n).index_add(0, image_m, caption_m)
    return (image_n + captions_n * len(image_n) / len(caption_m)) / 2


def _hits(wrong: Tensor) -> Tensor:
    """The share of ranks at which each query finds a right candidate."""
    return torch.stack([wrong < rank for rank in RANKS]).double().mean(dim=0)


def _recalls(name: str, wrong: Tensor) -> dict[str, float]:
    return {f"{name}_r{rank}": float((wrong < rank).double().mean()) for rank in RANKS}


def _wrong_before_image(images_nd: Tensor, captions_md: Tensor, image_m: Tensor) -> Tensor:
    """Per image, how many captions of other images are at least as near as the nearest of its own."""
    counts = []
    for block in _blocks(len(images_nd)):
        near_sm = images_nd[block] @ captions_md.T
        own_sm = block[:, None] == image_m
        best_s1 = near_sm.masked_fill(~own_sm, -torch.inf).amax(dim=1, keepdim=True)
        counts.append(((near_sm >= best_s1) & ~own_sm).sum(dim=1))
    return torch.cat(counts)


def _wrong_before_caption(images_nd: Tensor, captions_md: Tensor, image_m: Tensor) -> Tensor:
    """Per caption, how many other images are at least as near as its own."""
    counts = []
    for block in _blocks(len(captions_md)):
        near_sn = captions_md[block] @ images_nd.T
        own_s1 = image_m[block][:, None]
        # the right one is as near as itself
        counts.append((near_sn >= near_sn.gather(1, own_s1)).sum(dim=1) - 1)
    return torch.cat(counts)


def _blocks(count: int) -> Sequence[Tensor]:
    return torch.split(torch.arange(count), BLOCK)
