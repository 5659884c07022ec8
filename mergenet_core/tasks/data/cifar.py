"""CIFAR-100's binary files: records of a coarse label, a fine label and 3,072 bytes of red, green and blue pixels."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np

from mergenet_core.errors import DataRefused
from mergenet_core.planning.data_files import CIFAR_LABELS, CIFAR_PIXELS, CIFAR_RECORD

SIDE = 32
_HEADER = f"P6 {SIDE} {SIDE} 255\n".encode()
"""The header that makes an image file (PPM) of interleaved bytes, without any encoding."""
_NAMES = (("coarse_label_names.txt", 20), ("fine_label_names.txt", 100))


def read_cifar(path: Path, image: str, where: str) -> datasets.Dataset:
    """The images of a file in the column `image`, with `label` (fine) and `coarse_label`.

    The labels are named as in `fine_label_names.txt` and `coarse_label_names.txt` in its folder, else by their numbers.
    Raises: `DataRefused` for a label that has no name.
    """
    records_nr = np.fromfile(path, dtype=np.uint8).reshape(-1, CIFAR_RECORD)
    pixels = records_nr[:, -CIFAR_PIXELS:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    rows: dict[str, list[object]] = {image: [{"bytes": _HEADER + one.tobytes(), "path": None} for one in pixels]}
    features: dict[str, object] = {image: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    for byte, (column, (file, count)) in enumerate(zip(CIFAR_LABELS, _NAMES, strict=True)):
        names = path.with_name(file)
        known = names.read_text().split() if names.is_file() else [str(number) for number in range(count)]
        labels_n = records_nr[:, byte]
        if labels_n.max() >= len(known):
            row = int(labels_n.argmax())
            raise DataRefused(
                f"{where}: record {row} of {path.name} has {column} {labels_n[row]}, of {len(known)} labels; give "
                "CIFAR-100's binary version as it is published"
            )
        rows[column] = labels_n.tolist()
        features[column] = datasets.ClassLabel(names=known)
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))
