"""Image–text retrieval, as on MSCOCO's captions: images and captions find each other in a joint space.

A training example is an image with one of its captions; an example of validation or test is an image with all of its
captions, so that no image is encoded twice.

Legend: b examples of a batch, n of a split, k captions an example, t tokens, d dimensions of the joint space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mergenet_core.models.processors import Processor, TextAndImages
from mergenet_core.records.provenance import SplitSummary
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.data.images import check_channels
from mergenet_core.tasks.data.pixels import Pixels, fit_processor, read_pixels
from mergenet_core.tasks.data.splits import read_splits
from mergenet_core.tasks.data.tokens import Tokens, text_settings, tokenise
from mergenet_core.tasks.data.unlabelled import read_unlabelled
from mergenet_core.tasks.image_text_retrieval.captions import CaptionSplit, read_captions
from mergenet_core.tasks.image_text_retrieval.scores import image_terms, recalls
from mergenet_core.tasks.task import EXCLUDED, Batch, Choices, Examples, Outputs, TaskInputs

EVALUATION_IMAGES = 32
"""Images of a forward pass in evaluation; each comes with all of its captions."""


@dataclass(frozen=True)
class CaptionedImages:
    """A split of images with k captions per example; an image with fewer repeats its last one."""

    tokens: Tokens
    pixels: Pixels
    image_n: Tensor
    """The index in `pixels` of each example's image."""
    captions_nk: Tensor
    """The indices in `tokens` of its captions."""
    counts_n: Tensor
    """How many of its captions are not repetitions."""

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.image_n)

    def batch(self, index_b: Tensor) -> dict[str, Tensor]:
        """Token ids and mask of all captions, pixels, images. Shapes: (b · k, longest), (b, c, h, w), (b)."""
        tokens = self.tokens.batch(self.captions_nk[index_b].flatten())
        image_b = self.image_n[index_b]
        return {**tokens, "pixel_values": self.pixels.batch(image_b), "image": image_b}

    def evaluation_order(self) -> Tensor:
        """As they were read: captions of one image differ in length."""
        return torch.arange(len(self))


@dataclass(frozen=True)
class Retrieval:
    """Contrastive loss and recall, from images to captions and from captions to images."""

    train: CaptionedImages
    validation: CaptionedImages
    test: CaptionedImages
    processor: Processor
    settings: Mapping[str, int | None]
    data_summary: Mapping[str, SplitSummary]
    unlabelled: CaptionedImages | None = None
    labels: tuple[str, ...] = ()
    metric: str = TASKS["image-text-retrieval"].metric
    targets: frozenset[str] = field(default=frozenset({"image"}))
    row_outputs: tuple[str, ...] = ()
    evaluation_batch: int = EVALUATION_IMAGES

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Cross entropy over the batch's captions of each image and over its images of each caption, the mean of both.

        The model's learned temperature is in its logits. Another caption of the same image is neither right nor wrong:
        it is left out. Shapes: logits_per_image (b, b).
        """
        logits_bb, own_b = _similarities(outputs, batch)
        entropy = torch.nn.functional.cross_entropy
        return (entropy(logits_bb, own_b) + entropy(logits_bb.T, own_b)) / 2

    def choices(self, outputs: Outputs, batch: Batch) -> tuple[Choices, ...]:
        """One of the batch's captions for each image, and one of its images for each caption. Shapes: (b, b)."""
        logits_bb, own_b = _similarities(outputs, batch)
        return Choices(logits_bb, own_b), Choices(logits_bb.T, own_b)

    def answers(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The image and its captions in the joint space. Shapes: (b, (1 + k) · d)."""
        images_bd, captions_d = outputs["image_embeds"], outputs["text_embeds"]
        return torch.cat([images_bd, captions_d.reshape(len(images_bd), -1)], dim=1)

    def measure(self, answers_n: Tensor, examples: Examples) -> dict[str, float]:
        """Recall at 1, 5 and 10 both ways over all images and captions of the split, and their mean."""
        return recalls(*_embeddings(answers_n, examples))

    def terms(self, answers_n: Tensor, examples: Examples) -> Tensor:
        """What each image and its captions add to the mean recall. Shapes: (n)."""
        return image_terms(*_embeddings(answers_n, examples))


def _embeddings(answers_n: Tensor, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Images, captions and each caption's image. Shapes: (n, d), (m, d), (m)."""
    assert isinstance(examples, CaptionedImages)
    most = examples.captions_nk.shape[1]
    spaced = answers_n.view(len(examples), 1 + most, -1)
    own_nk = torch.arange(most) < examples.counts_n[:, None]
    return spaced[:, 0].cpu(), spaced[:, 1:].cpu()[own_nk], own_nk.nonzero()[:, 0]


def load_image_text_retrieval(inputs: TaskInputs) -> Retrieval:
    """The task's examples for one trial; limits count images, each of which brings all of its captions.

    Raises: `DataRefused`, `PathRefused`.
    """
    data, tokenizer, channels = inputs.data, inputs.text_tokenizer, inputs.channels
    check_channels(channels, inputs.field)

    def read(split: str) -> CaptionSplit:
        return read_captions(inputs, split)

    splits = read_splits(inputs, read)
    pool = read_unlabelled(inputs, splits, read)
    processor = fit_processor(inputs.images, splits.train.images, data.image_size, channels)

    def tokens_and_pixels(split: CaptionSplit, rows: Tensor) -> tuple[Tokens, Pixels, Tensor]:
        captions = [split.captions[row] for row in rows.tolist()]
        tokens = tokenise([text for texts in captions for text in texts], tokenizer, data.max_length)
        pixels = read_pixels(split.images.select(rows), processor, data.image_size, channels)
        return tokens, pixels, torch.tensor([len(texts) for texts in captions])

    train = _one_caption_each(*tokens_and_pixels(splits.train, splits.train_rows))
    validation = _all_captions(*tokens_and_pixels(splits.validation, splits.validation_rows))
    test = _all_captions(*tokens_and_pixels(splits.test, splits.test_rows))
    unlabelled = None if pool is None else _one_caption_each(*tokens_and_pixels(pool.split, pool.rows))
    summary = splits.summary(captions=(len(train.tokens), len(validation.tokens), len(test.tokens)))
    if pool is not None and unlabelled is not None:
        summary |= pool.summary(captions=len(unlabelled))
    return Retrieval(
        train=train,
        validation=validation,
        test=test,
        processor=TextAndImages(tokenizer, processor),
        unlabelled=unlabelled,
        settings=text_settings(tokenizer)
        | {
            # CLIP's text embedding is that of the token at its end
            "eos_token_id": tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
            "image_size": data.image_size,
            "num_channels": channels,
        },
        data_summary=summary,
    )


def _similarities(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows of images, columns of captions, other captions of an image excluded; and the column of each image's own."""
    image_b = batch["image"]
    own_b = torch.arange(len(image_b), device=image_b.device)
    same_image_bb = (image_b[:, None] == image_b) & (own_b[:, None] != own_b)
    return outputs["logits_per_image"].float().masked_fill(same_image_bb, EXCLUDED), own_b


def _one_caption_each(tokens: Tokens, pixels: Pixels, counts_n: Tensor) -> CaptionedImages:
    """An example for each caption."""
    image_n = torch.arange(len(counts_n)).repeat_interleave(counts_n)
    return CaptionedImages(tokens, pixels, image_n, torch.arange(len(image_n))[:, None], torch.ones_like(image_n))


def _all_captions(tokens: Tokens, pixels: Pixels, counts_n: Tensor) -> CaptionedImages:
    """An example for each image."""
    first_n1 = (counts_n.cumsum(0) - counts_n)[:, None]
    captions_nk = first_n1 + torch.minimum(torch.arange(int(counts_n.max())), counts_n[:, None] - 1)
    return CaptionedImages(tokens, pixels, torch.arange(len(counts_n)), captions_nk, counts_n)
