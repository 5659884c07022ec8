"""Images with captions: MSCOCO's own JSON file with its folder of images, or tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergenet_core.errors import DataRefused
from mergenet_core.planning.data_files import find_images
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.data.dataset_json import entries, integer, published_form, read_dataset_json
from mergenet_core.tasks.data.images import ImageColumn, distinct_images, images_in_folder
from mergenet_core.tasks.data.tables import hash_of, read_table
from mergenet_core.tasks.task import TaskInputs


@dataclass(frozen=True)
class CaptionSplit:
    """One split: images, each with its captions."""

    captions: tuple[tuple[str, ...], ...]
    """The captions of each image, at least one."""
    images: ImageColumn
    sha256: str

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.captions)


def read_captions(inputs: TaskInputs, split: str) -> CaptionSplit:
    """Read one split and check every caption. Raises: `DataRefused`, `PathRefused`."""
    data, where = inputs.data, f"{inputs.field}.{split}"
    published = read_dataset_json(inputs, split, "annotations")
    if published is not None:
        return _from_file(*published, inputs, where)
    table = read_table(inputs, split, TASKS["image-text-retrieval"].columns(data))
    images, image_n = distinct_images(table, data.image)
    captions: list[list[object]] = [[] for _ in range(len(images))]
    for image, cell in zip(image_n.tolist(), table.rows[data.caption][:], strict=True):
        captions[image] += cell if isinstance(cell, list) else [cell]
    return CaptionSplit(_checked(captions, where), images, table.sha256)


def _from_file(path: Path, content: JsonObject, inputs: TaskInputs, where: str) -> CaptionSplit:
    folder = find_images(path, inputs.data, inputs.roots, where)
    form = "the form of MSCOCO's captions, images with id and file_name, annotations with image_id and caption"
    with published_form(f"{where}: {path.name}", form):
        names = {integer(entry, "id"): str(entry["file_name"]) for entry in entries(content, "images")}
        captions: dict[int, list[object]] = {image: [] for image in names}
        for entry in entries(content, "annotations"):
            captions[integer(entry, "image_id")].append(entry["caption"])
    images = images_in_folder(list(names.values()), inputs.data.image, folder, where)
    return CaptionSplit(_checked(list(captions.values()), where), images, hash_of([path]))


def _checked(captions: Sequence[Sequence[object]], where: str) -> tuple[tuple[str, ...], ...]:
    if not captions:
        raise DataRefused(f"{where}: the file has no images; give a file with at least one")
    checked = []
    for number, given in enumerate(captions):
        texts = tuple(one.strip() for one in given if isinstance(one, str) and one.strip())
        if not given or len(texts) < len(given):
            wrong = next((repr(one) for one in given if not isinstance(one, str) or not one.strip()), "no caption")
            raise DataRefused(f"{where}: image {number} has {wrong}; every image has one caption or more, each a text")
        checked.append(texts)
    return tuple(checked)
