"""Images with captions: MSCOCO's own JSON file with its folder of images, or tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.planning.data_files import images_beside
from mergenet_core.spec.job import DataSpec
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.data.dataset_json import own_json, picture_table
from mergenet_core.tasks.data.pixels import distinct
from mergenet_core.tasks.data.tables import Table, hash_of, read


@dataclass(frozen=True)
class Captioned:
    """One split: images, each with what people said of it."""

    captions: tuple[tuple[str, ...], ...]
    """Of each image, at least one."""
    pictures: Table
    picture_rows: Tensor
    """Where each image stands in the table."""
    sha256: str


def read_captioned(data: DataSpec, split: str, roots: Roots, field: str) -> Captioned:
    """Read one split and check every caption. Raises: `DataRefused`, `PathRefused`."""
    where = f"{field}.{split}"
    if own := own_json(data, split, roots, where, "annotations"):
        return _from_file(*own, data, roots, where)
    table = read(data, split, TASKS["image-text-retrieval"].columns(data), roots, field)
    picture_rows, image_n = distinct(table, data)
    captions: list[list[Any]] = [[] for _ in picture_rows]
    for image, told in zip(image_n.tolist(), table.rows[data.caption][:], strict=True):
        captions[image] += told if isinstance(told, list) else [told]
    return Captioned(_checked(captions, where), table, picture_rows, table.sha256)


def _from_file(path: Path, found: Mapping[str, Any], data: DataSpec, roots: Roots, where: str) -> Captioned:
    folder = images_beside(path, data, roots, where)
    try:
        names = {entry["id"]: entry["file_name"] for entry in found["images"]}
        captions: dict[Any, list[Any]] = {image: [] for image in names}
        for entry in found["annotations"]:
            captions[entry["image_id"]].append(entry["caption"])
        pictures = picture_table(list(names.values()), data, folder, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataRefused(
            f"{where}: {path.name} is not in the form of MSCOCO's captions, images with id and file_name, annotations "
            f"with image_id and caption ({error!r})"
        ) from None
    return Captioned(_checked(list(captions.values()), where), pictures, torch.arange(len(names)), hash_of([path]))


def _checked(captions: list[list[Any]], where: str) -> tuple[tuple[str, ...], ...]:
    if not captions:
        raise DataRefused(f"{where}: the file has no images; give a file with at least one")
    for number, told in enumerate(captions):
        wrong = [one for one in told if not isinstance(one, str) or not one.strip()]
        if wrong or not told:
            said = repr(wrong[0]) if wrong else "no caption"
            raise DataRefused(f"{where}: image {number} has {said}; every image has one caption or more, each a text")
    return tuple(tuple(one.strip() for one in told) for told in captions)
