"""The form of a knowledge pack: a source's factors in one safetensors file with a manifest.

A pack knows nothing of any target. It carries the source's config, label names and tokenizer, so that a host that never
sees the source can pair with it. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from mergenet_core.errors import ModelRefused
from mergenet_core.model_files.safetensors_header import metadata, shapes_in
from mergenet_core.records.record import Record

MANIFEST_KEY, FILE_KEY = "mergenet-pack", "file:"
VERSION = 1
"""The format that this code writes and reads."""
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "preprocessor_config.json",
)  # fmt: skip
"""What a pack may carry of a source's folder, as text: tokenizer or image processor."""
PackDtype = Literal["float32", "float16", "int8"]


class PackedTensor(Record):
    """One weight of the source, as the pack keeps it."""

    shape: tuple[int, ...]
    rank: int | None = None
    """Of its factors; None where it is kept whole: a vector, or a matrix that its factors would not make smaller."""
    energy: tuple[float, ...] = ()
    """The share of its squared entries that the factors keep, a number a checkpoint."""

    def entries(self, name: str, checkpoint: int, dtype: PackDtype) -> dict[str, tuple[int, ...]]:
        """The tensors of the file that hold the weight: B and A, as int8 with their scales, or all of it."""
        if self.rank is None or len(self.shape) < 2:
            return {f"{checkpoint}/{name}": self.shape}
        m, n = as_matrix(self.shape)
        stored: dict[str, tuple[int, ...]] = {"B": (m, self.rank), "A": (self.rank, n)}
        if dtype == "int8":
            stored["scales"] = (2, self.rank)
        return {f"{checkpoint}/{name}/{kind}": shape for kind, shape in stored.items()}


class Pack(Record):
    """A pack's manifest."""

    version: int
    code: str
    """The version of the code that wrote it."""
    rank: int = Field(ge=1)
    """The rank r that the pack was made at; a matrix with a smaller side is kept as it is."""
    dtype: PackDtype
    """How factors are stored, int8 with scales; other matrices are then in half precision, vectors always in single."""
    checkpoints: int = Field(ge=1)
    """How many states of the source are kept, the oldest first."""
    config: dict[str, JsonValue]
    labels: tuple[str, ...] | None
    """The source's label names in the order of its head's rows; None where it has no trained head."""
    vocabulary: str | None
    """SHA-256 of the tokenizer's token → id map."""
    source: tuple[dict[str, str], ...]
    """SHA-256 of each checkpoint's weight files, by name."""
    tensors: dict[str, PackedTensor]


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight with two axes or more; one entry in front, as of positions, is no axis."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape[0], math.prod(shape[1:])


def read_pack(path: Path) -> Pack:
    """A pack's manifest. Raises: `ModelRefused` for another file, another format, or tensors that are not its own."""
    text = metadata(path).get(MANIFEST_KEY)
    if text is None:
        raise ModelRefused(f"{path.name} is no pack: it has no manifest. Make one with `mergenet pack`")
    try:
        document = json.loads(text)
        version = document.get("version")
    except (ValueError, AttributeError, RecursionError):
        raise ModelRefused(f"{path.name}: its manifest is not JSON; pack the source again") from None
    if version != VERSION:
        raise ModelRefused(
            f"{path.name} is a pack of format {version!r}, this code reads {VERSION}; pack the source again"
        )
    try:
        found = Pack.model_validate(document)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ModelRefused(f"{path.name}: its manifest cannot be read ({where}); pack the source again") from None
    _check_tensors(path, found)
    return found


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the tokenizer or image processor of a pack. Raises: `ModelRefused`."""
    with tempfile.TemporaryDirectory(prefix="mergenet-pack-") as folder:
        unpack(path, Path(folder))
        yield Path(folder)


def unpack(path: Path, folder: Path) -> None:
    """Write a pack's tokenizer or image processor into a folder; several processes may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = metadata(path)
    for name in FILES:
        if FILE_KEY + name in texts:
            draft = folder / f".{name}.{os.getpid()}"
            draft.write_text(texts[FILE_KEY + name], encoding="utf-8")
            os.replace(draft, folder / name)


def _check_tensors(path: Path, pack: Pack) -> None:
    """Compare the file's tensors with those that its manifest names. Raises: `ModelRefused`."""
    stored = shapes_in(path)
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in pack.tensors.items():
        for checkpoint in range(pack.checkpoints):
            wanted |= tensor.entries(name, checkpoint, pack.dtype)
    if stored != wanted:
        wrong = next(name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name))
        raise ModelRefused(
            f"{path.name}: {wrong} is {stored.get(wrong, 'not there')}, its manifest has "
            f"{wanted.get(wrong, 'nothing')}; pack the source again"
        )
