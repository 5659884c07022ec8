"""Image–text retrieval, as on MSCOCO's captions: images and captions find each other in a joint space.

An example to learn from is an image with one of its captions; one to be measured is an image with all of them, so that
no image is encoded twice.

Legend: b examples of a batch, n of a split, k captions an example, t tokens, d dimensions of the joint space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mergenet_core.models.processors import Processor, TextAndImages
from mergenet_core.tasks.data.pixels import Pixels, check_channels, fitted, read_pixels
from mergenet_core.tasks.data.ragged_tensor import Ragged
from mergenet_core.tasks.data.sampling import draw
from mergenet_core.tasks.data.tokens import tokenised
from mergenet_core.tasks.image_text_retrieval.captions import Captioned, read_captioned
from mergenet_core.tasks.image_text_retrieval.scores import recalls
from mergenet_core.tasks.task import Batch, Examples, Outputs, TaskInputs

EVALUATION_IMAGES = 32
"""Images of a forward pass when nothing is learned; each comes with all of its captions."""


@dataclass(frozen=True)
class Pictured:
    """A split of images with so many captions an example; where one has fewer, its last stands in."""

    tokens: Ragged
    fill: Mapping[str, int]
    pixels: Pixels
    image_n: Tensor
    """The image of each example, as a place in `pixels`."""
    captions_nk: Tensor
    """Its captions, as places in `tokens`."""
    counts_n: Tensor
    """How many of them are its own, and no stand-in."""

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.image_n)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids and mask of all captions, pixels, images. Shapes: (b · k, longest), (b, c, h, w), (b)."""
        tokens = self.tokens.padded(self.captions_nk[index_b].flatten(), self.fill)
        image_b = self.image_n[index_b]
        return {**tokens, "pixel_values": self.pixels.batch(image_b), "image": image_b}

    def evaluation_order(self) -> Tensor:
        """As they were read: captions of one image are of unlike length."""
        return torch.arange(len(self))


@dataclass(frozen=True)
class Retrieval:
    """A task whose examples are to be told from one another: contrastive loss both ways, recall both ways."""

    train: Pictured
    validation: Pictured
    test: Pictured
    processor: Processor
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    metric: str = "mean_recall"
    targets: frozenset[str] = field(default=frozenset({"image"}))
    evaluation_batch: int = EVALUATION_IMAGES

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Cross entropy over the batch's captions of each image and over its images of each caption, the mean of both.

        The model's own learned temperature is in its logits. Another caption of the same image is neither right nor
        wrong: it is left out. Shapes: logits_per_image (b, b).
        """
        logits_bb, image_b = outputs["logits_per_image"].float(), batch["image"]
        own_b = torch.arange(len(image_b), device=image_b.device)
        twin_bb = (image_b[:, None] == image_b) & (own_b[:, None] != own_b)
        logits_bb = logits_bb.masked_fill(twin_bb, -torch.inf)
        entropy = torch.nn.functional.cross_entropy
        return (entropy(logits_bb, own_b) + entropy(logits_bb.T, own_b)) / 2

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The image and its captions in the joint space. Shapes: (b, (1 + k) · d)."""
        images_bd, captions_d = outputs["image_embeds"], outputs["text_embeds"]
        return torch.cat([images_bd, captions_d.reshape(len(images_bd), -1)], dim=1)

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """Recall at 1, 5 and 10 both ways over all images and captions of the split, and their mean."""
        assert isinstance(examples, Pictured)
        most = examples.captions_nk.shape[1]
        spaced = answers_n.view(len(examples), 1 + most, -1)
        told_nk = torch.arange(most) < examples.counts_n[:, None]
        image_m = told_nk.nonzero()[:, 0]
        return recalls(spaced[:, 0].cpu(), spaced[:, 1:].cpu()[told_nk], image_m)


def load_image_text_retrieval(inputs: TaskInputs) -> Retrieval:
    """The task's examples for one trial; limits count images, each of which brings all of its captions.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, roots, field, channels = inputs.data, inputs.roots, inputs.field, inputs.channels
    tokenizer = inputs.text_tokenizer
    check_channels(channels, field)
    train, test = (read_captioned(data, split, roots, field) for split in ("train", "test"))
    train_rows, held_rows = draw(data, len(train.captions), seed=inputs.seed, field=field)
    validation = train
    if data.validation is not None:
        validation = read_captioned(data, "validation", roots, field)
        held_rows = torch.arange(len(validation.captions))
    images = fitted(inputs.images, train.pictures, train.picture_rows, data, channels)

    def pictured(split: Captioned, rows: Tensor, *, pairs: bool) -> Pictured:
        captions = [split.captions[row] for row in rows.tolist()]
        tokens, fill = tokenised([one for told in captions for one in told], tokenizer, data.max_length)
        pixels = read_pixels(split.pictures, data, split.picture_rows[rows], images, channels)
        return _in_pairs(captions, tokens, fill, pixels) if pairs else _whole(captions, tokens, fill, pixels)

    examples = {
        "train": pictured(train, train_rows, pairs=True),
        "validation": pictured(validation, held_rows, pairs=False),
        "test": pictured(test, torch.arange(len(test.captions)), pairs=False),
    }
    splits = {"train": train, "validation": validation, "test": test}
    facts: dict[str, dict[str, Any]] = {
        name: {
            "examples": int(part.image_n.max()) + 1,
            "captions": len(part.tokens),
            "sha256": splits[name].sha256,
        }
        for name, part in examples.items()
    }
    facts["train"]["of"] = len(train.captions)
    return Retrieval(
        train=examples["train"],
        validation=examples["validation"],
        test=examples["test"],
        processor=TextAndImages(tokenizer, images),
        settings={
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            # CLIP's text is what stands at its end
            "eos_token_id": tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
            "image_size": data.image_size,
            "num_channels": channels,
        },
        facts=facts,
    )


def _in_pairs(captions: Sequence[Sequence[str]], tokens: Ragged, fill: Mapping[str, int], pixels: Pixels) -> Pictured:
    counts_n = torch.tensor([len(told) for told in captions])
    image_n = torch.arange(len(captions)).repeat_interleave(counts_n)
    return Pictured(tokens, fill, pixels, image_n, torch.arange(len(image_n))[:, None], torch.ones_like(image_n))


def _whole(captions: Sequence[Sequence[str]], tokens: Ragged, fill: Mapping[str, int], pixels: Pixels) -> Pictured:
    counts_n = torch.tensor([len(told) for told in captions])
    first_n1 = (counts_n.cumsum(0) - counts_n)[:, None]
    captions_nk = first_n1 + torch.minimum(torch.arange(int(counts_n.max())), counts_n[:, None] - 1)
    return Pictured(tokens, fill, pixels, torch.arange(len(captions)), captions_nk, counts_n)
