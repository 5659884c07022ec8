"""Which tokens of a chunk count, and the source's activations at the target's tokens.

Legend: b examples, t tokens, n tokens that count, D the source's stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.errors import ModelRefused
from mergenet_core.fitting.context import Chunk
from mergenet_core.tasks.task import Batch


class Tokens:
    """The tokens of this process's chunks."""

    def __init__(self, chunks: Sequence[Chunk], target: ModelStructure) -> None:
        self._chunks = chunks
        self._patch = target.dimensions.patch if target.kind == "vit" else None

    def __len__(self) -> int:
        """How many chunks there are."""
        return len(self._chunks)

    def of_source(self, chunk: int, h_bt: Tensor) -> Tensor:
        """The rows of a tensor of the source that are tokens, not padding. Shapes: (b, t, …) → (n, …)."""
        return _rows(self._chunks[chunk].source, h_bt)

    def of_target(self, chunk: int, h_bt: Tensor) -> Tensor:
        """The rows of a tensor of the target that are tokens, not padding. Shapes: (b, t, …) → (n, …)."""
        return _rows(self._chunks[chunk].target, h_bt)

    def at_target(self, chunk: int, h_btD: Tensor) -> Tensor:
        """The source's activations at the target's tokens that count. Shapes: (b, t, D) → (n, D).

        Texts are cut into the same tokens. Images may be cut into other patches: the grid is resampled, and the class
        token stays in front.
        """
        target = self._chunks[chunk].target
        if self._patch is not None:
            height, width = target["pixel_values"].shape[-2:]
            h_btD = resampled(h_btD, (height // self._patch[0], width // self._patch[1]))
        return _rows(target, h_btD)

    def counts(self, chunk: int) -> Tensor:
        """How many examples of the source have a token at each place. Shapes: (t)."""
        inputs = self._chunks[chunk].source
        mask_bt = inputs.get("attention_mask")
        return (torch.ones_like(inputs["input_ids"]) if mask_bt is None else mask_bt).sum(0)

    def last(self, chunk: int, h_btd: Tensor) -> Tensor:
        """The rows of each example's last token, which a decoder is classified by. Shapes: (b, t, d) → (b, d)."""
        mask_bt = self._chunks[chunk].target.get("attention_mask")
        if mask_bt is None:
            return h_btd[:, -1]
        places_t = torch.arange(1, mask_bt.shape[1] + 1, device=mask_bt.device)
        last_b = (mask_bt * places_t).argmax(1).to(h_btd.device)
        return h_btd[torch.arange(len(h_btd), device=h_btd.device), last_b]

    def pixels(self, chunk: int) -> Tensor:
        """The pictures as the target reads them."""
        return self._chunks[chunk].target["pixel_values"]


def resampled(h_btD: Tensor, side: tuple[int, int]) -> Tensor:
    """The activations of a class token and of a square grid of patches, on another grid. Shapes: (b, t, D)."""
    patches = h_btD.shape[1] - 1
    old = math.isqrt(patches)
    if (old, old) == side:
        return h_btD
    if old * old != patches:
        raise ModelRefused(
            f"source: {patches} patches are no square grid; fit reads images of equal sides, or the target's patches"
        )
    grid_bDhw = h_btD[:, 1:].transpose(1, 2).reshape(len(h_btD), -1, old, old)
    mode = "area" if side[0] <= old else "bilinear"
    grid_bDhw = interpolate(grid_bDhw, size=side, mode=mode)
    return torch.cat([h_btD[:, :1], grid_bDhw.flatten(2).transpose(1, 2)], dim=1)


def _rows(inputs: Batch, h_bt: Tensor) -> Tensor:
    mask_bt = inputs.get("attention_mask")
    return h_bt.flatten(0, 1) if mask_bt is None else h_bt[mask_bt.to(h_bt.device).bool()]
