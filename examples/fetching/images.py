"""Sets of images: Fashion-MNIST as a table, and in the form of CIFAR-100's binary version."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

from .registries import from_debian

FASHION = "dataset-fashion-mnist"
FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
FASHION_LABELS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]


def fashion_mnist(folder: Path) -> str:
    """Fashion-MNIST: 60,000 and 10,000 images of clothes, as PNG in parquet.

    `train-source` and `train-target` are the two halves of the training images, for jobs whose source must not have
    seen what the target is selected or taught by.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    zipped = from_debian(FASHION, "usr/share/datasets/fashion-mnist", FASHION_SHA256)
    files = {name: gzip.decompress(content) for name, content in zipped.items()}
    described = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": FASHION_LABELS},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    about = {"huggingface": json.dumps({"info": {"features": described}})}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=about)
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = files[f"{stem}-images-idx3-ubyte.gz"][16:]
        labels = list(files[f"{stem}-labels-idx1-ubyte.gz"][8:])
        images = [{"bytes": _png(pixels[at : at + 784]), "path": None} for at in range(0, len(pixels), 784)]
        table = pa.table({"image": images, "label": labels}, schema=schema)
        pq.write_table(table, folder / f"{split}.parquet")
        if split == "train":
            half = len(table) // 2
            pq.write_table(table[:half], folder / "train-source.parquet")
            pq.write_table(table[half:], folder / "train-target.parquet")
    return f"from the Debian package {FASHION}"


def fashion_cifar(folder: Path) -> str:
    """Fashion-MNIST in the form of CIFAR-100's binary version: 32 × 32, three equal colours, coarse and fine labels."""
    zipped = from_debian(FASHION, "usr/share/datasets/fashion-mnist", FASHION_SHA256)
    files = {name: gzip.decompress(content) for name, content in zipped.items()}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels, labels = files[f"{stem}-images-idx3-ubyte.gz"][16:], files[f"{stem}-labels-idx1-ubyte.gz"][8:]
        records = (_cifar_record(pixels[784 * row : 784 * row + 784], label) for row, label in enumerate(labels))
        (folder / f"{split}.bin").write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("".join(f"{name}\n" for name in FASHION_LABELS))
    (folder / "coarse_label_names.txt").write_text("clothes\nshoes\nbags\n")
    return f"from the Debian package {FASHION}"


def _cifar_record(pixels: bytes, label: int) -> bytes:
    rows = [bytes(2) + pixels[at : at + 28] + bytes(2) for at in range(0, 784, 28)]
    plane = bytes(64) + b"".join(rows) + bytes(64)
    coarse = 2 if label == 8 else int(label in (5, 7, 9))
    return bytes((coarse, label)) + 3 * plane


def _png(pixels: bytes) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.frombytes("L", (28, 28), pixels).save(written, "PNG")
    return written.getvalue()
