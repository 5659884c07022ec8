"""The part of a job document that describes the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+$"
"""Neither control characters nor those that hide or reorder the text around them."""
NameText = Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)]
PathText = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")]


class Strict(BaseModel):
    """A part of the document. Unknown keys are errors, and values are never converted from another type."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class HeldOut:
    """The examples that a source leaves out of a training file, by which the target of the same file is validated."""

    seed: int | None
    """The seed by which the source draws them; None if that is the trial's."""
    limit: int
    """How many there are at most."""


class DataSpec(Strict):
    """Examples: a train and a test split, each a file (parquet, JSON lines, CSV) or a folder of images or texts.

    For CIFAR-100 give the files of its binary version (`label` is the fine label, `coarse_label` the other), for VQA
    v2.0 the questions file, with the annotations in the same folder, and for MSCOCO the captions file.
    """

    train: PathText
    """A file or folder inside the server's data roots, or the split's name when `hub` is given."""
    test: PathText
    """The split that the report is measured on; always used completely."""
    validation: PathText | None = None
    """The split that weights are selected by; default: examples held out of `train`."""
    unlabelled: PathText | None = None
    """Inputs without labels or answers, in any form of `train`; a column of these is not needed and never read."""
    unlabelled_from_train: bool = False
    """Use rows of `train` as unlabelled inputs: the labelled ones and those that `train_limit` leaves
    out, but never the ones held out for validation."""
    unlabelled_limit: Annotated[int, Field(ge=1)] | None = None
    """Use this number of unlabelled inputs only, drawn by the trial's seed; the same in every arm of that seed."""
    hub: NameText | None = None
    """A hub dataset id; only where the operator allows the hub, and only with `revision`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of the hub dataset, 40 hexadecimal digits."""
    text: NameText = "text"
    """Text classification and language modelling: the column with the text."""
    image: NameText = "image"
    """The column with the image."""
    images: PathText | None = None
    """VQA v2.0's and MSCOCO's files: the folder with `train2014` etc.; default: the file's folder or its parent."""
    caption: NameText = "caption"
    """Image–text retrieval: the column with the image's caption, or with a list of them."""
    label: NameText = "label"
    """The column with the label, text or a whole number."""
    question: NameText = "question"
    """Questions on texts or images: the column with the question; SQuAD's and VQA's own files need no columns."""
    context: NameText = "context"
    """Question answering: the column with the text that contains the answer."""
    answers: NameText = "answers"
    """The column with the answers: on texts, text and start of each; on images, one text or one per annotator."""
    answer_limit: Annotated[int, Field(ge=2, le=100_000)] = 3129
    """Visual question answering: how many labels there are, the most frequent answers of the training split."""
    train_limit: Annotated[int, Field(ge=1)] | None = None
    """Train on this number of examples only, drawn by the trial's seed; the same in every arm of that seed."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Train on this share of the examples only, drawn in the same manner; the paper uses 0.1."""
    validation_limit: Annotated[int, Field(ge=1)] = 200
    """Examples held out of `train` for validation, at most a fifth of it; they are never trained on."""
    max_length: Annotated[int, Field(ge=2, le=8192)] = 128
    """Text: tokens per example. Longer texts are cut; for question answering they are read in windows."""
    stride: Annotated[int, Field(ge=0)] | None = None
    """Question answering: tokens that neighbouring windows of a text share; default: a third of `max_length`."""
    blocks: Literal["packed", "truncated"] = "packed"
    """Language modelling: join texts and split them into blocks of `max_length`, or one block per text, cut there."""
    image_size: Annotated[int, Field(ge=4, le=1024)] = 32
    """Images: height and width in pixels after resizing."""
    augment: Literal["none", "crop-flip"] = "none"
    """Image classification: at each step, shift images by up to 4 pixels and mirror half of them, at random."""

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are unlabelled inputs."""
        return self.unlabelled is not None or self.unlabelled_from_train

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.train_limit is not None and self.train_fraction != 1.0:
            raise ValueError("give train_limit or train_fraction, not both")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together: pin the hub id to a 40-digit commit")
        return self

    @model_validator(mode="after")
    def _unlabelled_inputs_stay_apart(self) -> Self:
        if self.unlabelled is not None and self.unlabelled_from_train:
            raise ValueError("give unlabelled or unlabelled_from_train, not both")
        if self.unlabelled_limit is not None and not self.has_unlabelled:
            raise ValueError(
                "unlabelled_limit limits nothing: give unlabelled or unlabelled_from_train, or leave it out"
            )
        for split in ("train", "test", "validation"):
            if self.unlabelled is not None and self.unlabelled == getattr(self, split):
                raise ValueError(
                    f"unlabelled must not be the {split} split: {self.unlabelled}; for the rows of train that are not "
                    "held out for validation give unlabelled_from_train: true"
                )
        return self
