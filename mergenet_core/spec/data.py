"""The part of the job document that says where examples come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NameText = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
PathText = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")]


class Strict(BaseModel):
    """A part of the document: unknown keys are errors, values are never coerced from another type."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class DataSpec(Strict):
    """Examples: a train and a test split, each a file (parquet, JSON lines, CSV) or a folder of images or texts.

    CIFAR-100 is named by the files of its binary version (`label` is the fine one, `coarse_label` the other), VQA v2.0
    by its questions file, with the annotations beside it, MSCOCO by its captions file.
    """

    train: PathText
    """A file or folder inside the server's data roots, or the split's name when `hub` is given."""
    test: PathText
    """The split that the report is measured on; always used whole."""
    validation: PathText | None = None
    """The split that selection looks at; default: examples that are held out of `train`."""
    hub: NameText | None = None
    """A hub dataset id; only where the operator allows the hub, and only with `revision`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of the hub dataset, 40 hexadecimal digits."""
    text: NameText = "text"
    """Text classification and language modelling: the column with the text."""
    image: NameText = "image"
    """The column with the image."""
    images: PathText | None = None
    """VQA v2.0's and MSCOCO's files: the folder with `train2014` and the like; default: beside or above the file."""
    caption: NameText = "caption"
    """Image–text retrieval: the column with the image's caption, or with a list of them."""
    label: NameText = "label"
    """The column with the label, a string or a whole number."""
    question: NameText = "question"
    """Questions on texts or images: the column with the question; SQuAD's and VQA's own files need no columns."""
    context: NameText = "context"
    """Question answering: the column with the text that the answer stands in."""
    answers: NameText = "answers"
    """The column with the answers: each its text and where it starts, or, of an image, one or a text an annotator."""
    answer_limit: Annotated[int, Field(ge=2, le=100_000)] = 3129
    """Visual question answering: so many of the training split's most frequent answers are the labels."""
    train_limit: Annotated[int, Field(ge=1)] | None = None
    """Use only so many training examples, drawn by the trial's seed, the same in every arm of that seed."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Use only this share of the training split, drawn likewise; the paper uses 0.1."""
    validation_limit: Annotated[int, Field(ge=1)] = 200
    """How many examples are held out of `train` for validation, at most a fifth of it, never trained on."""
    max_length: Annotated[int, Field(ge=2, le=8192)] = 128
    """Text: tokens an example, longer ones are cut; questions on longer texts are read in windows."""
    stride: Annotated[int, Field(ge=0)] | None = None
    """Question answering: tokens that neighbouring windows of a text share; default: a third of `max_length`."""
    blocks: Literal["packed", "truncated"] = "packed"
    """Language modelling: texts end to end in blocks of `max_length`, or a block a text, cut at `max_length`."""
    image_size: Annotated[int, Field(ge=4, le=1024)] = 32
    """Images: height and width in pixels after resizing."""
    augment: Literal["none", "crop-flip"] = "none"
    """Image classification: shift each training image by up to 4 pixels and mirror every other one, anew each step."""

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.train_limit is not None and self.train_fraction != 1.0:
            raise ValueError("give train_limit or train_fraction, not both")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together: pin the hub id to a 40-digit commit")
        return self
