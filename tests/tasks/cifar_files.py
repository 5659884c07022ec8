"""Files in the form of CIFAR-100's binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mergenet_core.planning.data_files import CIFAR_RECORD


def write_cifar(path: Path, count: int, seed: int, labels: int = 100) -> npt.NDArray[np.uint8]:
    """Random images, each brighter the larger its label; returns the records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    records = draw.integers(0, 100, (count, CIFAR_RECORD), dtype=np.uint8)
    fine_n = draw.permutation(np.arange(count) % labels).astype(np.uint8)
    records[:, 2:] += fine_n[:, None]
    records[:, 0], records[:, 1] = fine_n % 2, fine_n
    records.tofile(path)
    return records
