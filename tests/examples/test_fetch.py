"""What the fetched sets are made of, from a few lines in the form of the originals."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from transformers import MobileNetV2Config, MobileNetV2Model

NOUNS = """\
  1 This software and database is being provided to you
00001740 03 n 01 entity 0 000 | that which is perceived
00004475 03 n 02 organism 0 being 0 001 @ 00001740 n 0000 | a living thing that can act
00006024 03 n 01 heterotroph 0 001 @ 00004475 n 0000 | (biology) an organism that lives on others; "most are"
00006150 03 n 01 parent 0 002 + 00000001 v 0101 @ 00004475 n 0000 | a being from which younger ones are obtained
00007000 03 n 01 small_organism 0 001 @ 00004475 n 0000 | a small organism of this kind
00008000 03 n 01 short 0 001 @ 00004475 n 0000 | an organism
00009000 03 n 01 sea_urchin 0 001 @i 00004475 n 0000 | shallow-water organism of the sea
"""


@pytest.fixture(scope="module")
def fetch() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "fetch.py"
    found = importlib.util.spec_from_file_location("examples_fetch", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def test_definitions_that_name_the_wider_class(fetch: ModuleType) -> None:
    assert list(fetch._definitions(NOUNS)) == [
        ("heterotroph", "an organism that lives on others", 3, "organism"),
        ("parent", "a being from which younger ones are obtained", 2, "being"),
        ("sea urchin", "shallow-water organism of the sea", 14, "organism"),
    ]


def test_a_text_is_asked_for_its_word_and_every_other_one_for_a_word_that_is_not_there(fetch: ModuleType) -> None:
    entry = next(fetch._definitions(NOUNS))
    asked = [one["question"] for one in fetch._paragraph(entry, "gnome", 1)["qas"]]
    assert asked == ["What is heterotroph?", "What is gnome?"]
    assert len(fetch._paragraph(entry, "gnome", 2)["qas"]) == 1
    paragraph = fetch._paragraph(entry, "others", 1)
    assert len(paragraph["qas"]) == 1, "the text says something of others"
    (answer,) = paragraph["qas"][0]["answers"]
    assert paragraph["context"][answer["answer_start"] :].startswith("organism that lives")
    assert not paragraph["qas"][0]["is_impossible"]


def test_questions_on_shapes_are_written_as_vqa_is(fetch: ModuleType) -> None:
    questions, annotations = fetch._vqa_files([["what shape ?", "circle", 3], ["is it red ?", "no", 3]], "val2014", 100)
    assert questions["questions"][1] == {"image_id": 103, "question_id": 1001, "question": "is it red ?"}
    told = annotations["annotations"]
    assert [one["question_id"] for one in told] == [1000, 1001]
    assert [one["answer_type"] for one in told] == ["other", "yes/no"]
    assert [answer["answer"] for answer in told[0]["answers"]] == ["circle"] * 10
    assert fetch._vqa_name("val2014", 103) == "COCO_val2014_000000000103.jpg"


def test_mobilenets_weights_get_the_names_and_shapes_that_transformers_has(fetch: ModuleType) -> None:
    places = {0: (0, 1), 1: (0, 1, 3, 4), 18: (0, 1)}  # of convolutions and norms among the layers of a block
    names = set()
    for block in range(19):
        for place in places.get(block, (0, 1, 3, 4, 6, 7)):
            norm = place % 3 == 1
            for value in ("weight", "bias", "running_mean", "running_var") if norm else ("weight",):
                inside = f"{place}" if block in (0, 18) else f"conv.{place}"
                names.add(fetch._mobilenet_name(f"features.{block}.{inside}.{value}"))
    expected = MobileNetV2Model(MobileNetV2Config()).state_dict()
    assert names == {name for name in expected if not name.endswith("num_batches_tracked")}
    assert fetch._mobilenet_name("features.2.conv.4.running_var") == "layer.0.conv_3x3.normalization.running_var"


def test_pictures_are_told_by_their_sentence_and_their_shelf(fetch: ModuleType) -> None:
    assert fetch._shelf(Path("animals/birds/grey_goose-1.png")) == "grey goose 1 among birds animals"
    written = fetch._captions_file([("A goose.", "goose among birds"), ("A frog.", "frog")], 10)
    assert [image["file_name"] for image in written["images"]] == ["000000000010.jpg", "000000000011.jpg"]
    assert [(one["image_id"], one["caption"]) for one in written["annotations"]] == [
        (10, "A goose."), (10, "goose among birds"), (11, "A frog."), (11, "frog"),
    ]  # fmt: skip


def test_a_transparent_picture_is_saved_on_white_at_the_middle(fetch: ModuleType, tmp_path: Path) -> None:
    written = io.BytesIO()
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(written, "PNG")
    fetch._save(written.getvalue(), tmp_path / "one.jpg", 8)
    with Image.open(tmp_path / "one.jpg") as saved:
        assert saved.size == (8, 8)
        assert min(saved.getpixel((4, 0))) > 240
        red, green, _ = saved.getpixel((4, 4))
        assert red > 240
        assert green < 40
