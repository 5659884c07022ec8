"""Tokenizers and image processors: which one a model uses, and how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mergenet_core.errors import ModelRefused
from mergenet_core.spec.job import ModelSpec
from mergenet_core.spec.task_info import TASKS, TaskName
from mergenet_core.storage.paths import Roots

BOX = 4
"""PIL's box filter: each pixel is the mean of those it replaces."""
_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_IMAGES = ("preprocessor_config.json",)


class Processor(Protocol):
    """What turns a user's texts or images into a model's inputs; it is saved with the model."""

    def save_pretrained(self, folder: Path) -> object:
        """Write its files into a folder."""


class Encoding(Protocol):
    """What a tokenizer makes of a batch of texts: lists, or tensors where tensors were asked for, by name."""

    def __getitem__(self, name: str) -> Any:
        """`input_ids` and the like, an entry for each text. The reader declares the type that it asked for."""

    def __iter__(self) -> Iterator[str]:
        """The names."""

    def __contains__(self, name: object) -> bool:
        """Whether the tokenizer makes this."""

    def sequence_ids(self, index: int) -> Sequence[int | None]:
        """Of each token of one text or pair: 0 for the first text, 1 for the second, None for a special token."""


class Tokenizer(Processor, Protocol):
    """What is used of a tokenizer of transformers."""

    is_fast: bool
    """Whether it knows the offsets of each token in the text."""
    model_input_names: list[str]
    pad_token_id: int
    pad_token_type_id: int
    mask_token_id: int | None
    cls_token_id: int | None
    sep_token_id: int | None
    eos_token_id: int | None
    all_special_ids: list[int]

    def __len__(self) -> int:
        """Tokens of its vocabulary, added ones included."""

    def __call__(
        self, texts: Sequence[str], second_texts: Sequence[str] | None = None, /, **settings: object
    ) -> Encoding:
        """Tokens of texts, or of pairs of texts."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of tokens."""

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens of a text, or of a pair."""


class ImageProcessor(Processor, Protocol):
    """What is used of an image processor of transformers."""

    image_mean: list[float]
    image_std: list[float]
    rescale_factor: float
    resample: int

    def __call__(self, image: Image.Image, *, return_tensors: str) -> Mapping[str, Sequence[Tensor]]:
        """`pixel_values` of one image, in a batch of one."""


def processor_folder(
    spec: ModelSpec, task: TaskName, roots: Roots, *, own: Path | None, source: Path | None, field: str
) -> Path | None:
    """The folder with the model's tokenizer or image processor: the one given, else its own, else the source's.

    Raises: `ModelRefused` when the one given holds none, or when a text model has none at all.
    """
    wanted = _TOKENIZER if TASKS[task].reads_text else _IMAGES
    if spec.tokenizer is not None:
        given = roots.model(spec.tokenizer, f"{field}.tokenizer")
        if not _holds(given, wanted):
            raise ModelRefused(f"{field}.tokenizer: {spec.tokenizer} holds none of {', '.join(wanted)}")
        return given
    for folder in (own, source if own is None else None):
        if folder is not None and _holds(folder, wanted):
            return folder
    if TASKS[task].reads_text:
        raise ModelRefused(f"{field} has no tokenizer and the source has none to share; give {field}.tokenizer")
    return None


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer that pads on the right. Raises: `ModelRefused` when it cannot be read, or has no padding token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelRefused(f"{folder.name}: the tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelRefused(f"{folder.name}: the tokenizer has no padding token; set pad_token in its config")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    loaded: Tokenizer = tokenizer
    return loaded


def load_image_processor(folder: Path) -> ImageProcessor:
    """An image processor that works on PIL images. Raises: `ModelRefused` when it cannot be read."""
    try:
        loaded: ImageProcessor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ModelRefused(f"{folder.name}: the image processor cannot be loaded: {reason}") from error
    return loaded


def has_image_processor(folder: Path) -> bool:
    """Whether a folder holds an image processor."""
    return _holds(folder, _IMAGES)


class TextAndImages(NamedTuple):
    """The tokenizer and the image processor of a model that reads both, saved in one folder."""

    tokenizer: Tokenizer
    images: ImageProcessor

    def save_pretrained(self, folder: Path) -> None:
        """Write both, each for its own auto class."""
        self.tokenizer.save_pretrained(folder)
        self.images.save_pretrained(folder)


def plain_image_processor(size: int, mean: list[float], std: list[float], resample: int = BOX) -> ImageProcessor:
    """Resize, scale to 0…1, normalise each channel: what a model from scratch is trained and saved with."""
    sides = {"height": size, "width": size}
    made: ImageProcessor = ViTImageProcessorPil(size=sides, image_mean=mean, image_std=std, resample=resample)
    return made


def is_plain(processor: ImageProcessor) -> bool:
    """Whether the processor does no more than resize, scale and normalise."""
    return isinstance(processor, ViTImageProcessorPil) and bool(processor.do_resize and processor.do_normalize)


def keeps_proportions(processor: ImageProcessor) -> bool:
    """Whether the processor gives images of different proportions different sizes, as ViLT's does."""
    size = getattr(processor, "size", None)
    return size is not None and "height" not in size and not getattr(processor, "do_center_crop", None)


def _holds(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)
