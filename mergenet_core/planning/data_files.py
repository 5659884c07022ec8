"""The files of published data sets: CIFAR-100's records, and the files of VQA v2.0 and MSCOCO that belong together.

A document names one file of VQA or MSCOCO; the others are found from its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from mergenet_core.errors import DataRefused
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots

CIFAR_PIXELS = 3 * 32 * 32
CIFAR_RECORD = 2 + CIFAR_PIXELS
"""Bytes of an image with its coarse and its fine label in CIFAR-100's binary files."""
CIFAR_LABELS = ("coarse_label", "label")
"""The columns of the two labels, in the order of the bytes; `label` is the fine one."""
UNLABELLED_FOLDER = "unsup"
"""The folder of IMDb's archive with the reviews that have no label; it is next to the labels' folders."""
_SUBSET = re.compile(r"(?:train|val|test)\d{4}")


def find_annotations(questions: Path, field: str) -> Path:
    """The file with the answers to VQA's questions, in the same folder as the questions.

    Raises: `DataRefused` where there are none.
    """
    name = questions.name.replace("OpenEnded_", "").replace("questions", "annotations")
    found = questions.with_name(name)
    if name == questions.name or not found.is_file():
        raise DataRefused(
            f"{field}: {questions.name} has no file of answers in its folder; in VQA v2.0 the answers to "
            "v2_OpenEnded_mscoco_train2014_questions.json are in v2_mscoco_train2014_annotations.json: name yours alike"
        )
    return found


def find_images(file: Path, data: DataSpec, roots: Roots, field: str) -> Path:
    """The folder with the images that a file names: `train2014` next to the file, one level above, or in `images`.

    Raises: `DataRefused` where there is none, `PathRefused`.
    """
    named = _SUBSET.search(file.name)
    if data.images is not None:
        base = roots.dataset(data.images, f"{field.rsplit('.', 1)[0]}.images")
        inner = base / named[0] if named else base
        return inner if inner.is_dir() else base
    above = file.parent.parent
    bases = [file.parent, *([above] if any(above.is_relative_to(root.resolve()) for root in roots.data) else [])]
    for base in bases:
        if named is not None and (base / named[0]).is_dir():
            return base / named[0]
    wanted = f"the folder {named[0]}" if named else "a folder such as train2014 (the file's name has no such word)"
    raise DataRefused(
        f"{field}: {wanted} with the images of {file.name} is neither next to the file nor one level above; name it in "
        "images"
    )
