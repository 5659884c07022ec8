"""Tokenizers and image processors: which one a model uses, loaded locally, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mergenet_core.errors import ModelRefused
from mergenet_core.spec.job import ModelSpec, TaskName
from mergenet_core.spec.task_columns import reads_text
from mergenet_core.storage.paths import Roots

BOX = 4
"""PIL's box filter: each pixel is the mean of those it replaces."""
_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_IMAGES = ("preprocessor_config.json",)


def processor_folder(
    spec: ModelSpec, task: TaskName, roots: Roots, *, own: Path | None, source: Path | None, field: str
) -> Path | None:
    """The folder with the model's tokenizer or image processor: the one given, else its own, else the source's.

    Raises: `ModelRefused` when the one given holds none, or when there is none at all for a text model.
    """
    wanted = _TOKENIZER if reads_text(task) else _IMAGES
    if spec.tokenizer is not None:
        given = roots.model(spec.tokenizer, f"{field}.tokenizer")
        if not _holds(given, wanted):
            raise ModelRefused(f"{field}.tokenizer: {spec.tokenizer} holds none of {', '.join(wanted)}")
        return given
    for folder in (own, source if own is None else None):
        if folder is not None and _holds(folder, wanted):
            return folder
    if reads_text(task):
        raise ModelRefused(f"{field} has no tokenizer and the source has none to share; give {field}.tokenizer")
    return None


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer that pads on the right. Raises: `ModelRefused` when it cannot be read, or has nothing to pad with."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelRefused(f"{folder.name}: the tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelRefused(f"{folder.name}: the tokenizer has no padding token; set pad_token in its config")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_image_processor(folder: Path) -> Any:
    """An image processor that works on PIL images. Raises: `ModelRefused` when it cannot be read."""
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ModelRefused(f"{folder.name}: the image processor cannot be loaded: {reason}") from error


class TextAndImages(NamedTuple):
    """What makes a model's texts and images, saved side by side in one folder."""

    tokenizer: Any
    images: Any

    def save_pretrained(self, folder: Path) -> None:
        """Write both, each for its own auto class."""
        self.tokenizer.save_pretrained(folder)
        self.images.save_pretrained(folder)


def load_both(folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the image processor of a folder; None for the latter where it has none.

    Raises: `ModelRefused`.
    """
    return load_tokenizer(folder), load_image_processor(folder) if _holds(folder, _IMAGES) else None


def plain_image_processor(size: int, mean: list[float], std: list[float], resample: int = BOX) -> Any:
    """Resize, scale to 0…1, normalise each channel: what a model from scratch is trained and saved with."""
    sides = {"height": size, "width": size}
    return ViTImageProcessorPil(size=sides, image_mean=mean, image_std=std, resample=resample)


def is_plain(processor: Any) -> bool:
    """Whether the processor does no more than resize, scale and normalise."""
    return isinstance(processor, ViTImageProcessorPil) and processor.do_resize and processor.do_normalize


def keeps_proportions(processor: Any) -> bool:
    """Whether images of unlike proportions leave the processor in unlike sizes, as ViLT's."""
    size = getattr(processor, "size", None)
    return size is not None and "height" not in size and not getattr(processor, "do_center_crop", None)


def _holds(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)
