from __future__ import annotations

from xml.etree import ElementTree

import pytest

from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.spec.job import TransferSpec
from service.cli.pairing_svg import draw, how_of

SVG = "{http://www.w3.org/2000/svg}"


def cnn(*channels: int, labels: tuple[str, ...] = ("ant", "bee")) -> ModelInfo:
    config = {"model_type": "mergenet-cnn", "num_channels": 1, "channels": channels, "num_labels": 2}
    return ModelInfo(config, shapes_from_config(config) or {}, None, labels)


@pytest.fixture
def pairing() -> Pairing:
    return pair(cnn(8, 8, 8), cnn(4, 4, labels=("b<e>", "x")), TransferSpec())


def test_every_pair_is_a_line_in_the_colour_of_its_axes(pairing: Pairing) -> None:
    root = ElementTree.fromstring(draw(pairing))
    lines = [line for line in root.iter(f"{SVG}line") if line.find(f"{SVG}title") is not None]
    matrices = [entry for entry in pairing.pairs if entry.rank is not None]
    assert len(lines) == len(matrices) == 2
    assert [how_of(pairing, entry) for entry in matrices] == ["same", "carried"]
    assert len({line.get("stroke") for line in lines}) == 2


def test_an_unpaired_weight_is_drawn_with_its_reason(pairing: Pairing) -> None:
    root = ElementTree.fromstring(draw(pairing))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "not paired: labels is not shared; sharing it needs labels of the same nameshead.weight" in texts


def test_weights_stay_inside_the_picture(pairing: Pairing) -> None:
    root = ElementTree.fromstring(draw(pairing))
    height = float(root.get("height", 0))
    heights = [float(text.get("y", 0)) for text in root.iter(f"{SVG}text")]
    assert max(heights) < height
    assert min(heights) > 0
