"""What the fetched sets are made of, from a few lines in the form of the originals."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from transformers import MobileNetV2Config, MobileNetV2Model

from examples.fetching.images_and_texts import captions_file, save_on_white, shelf_in_words, vqa_files, vqa_name
from examples.fetching.models import mobilenet_name
from examples.fetching.texts import category_rows, definitions, squad_paragraph

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


def test_definitions_that_name_the_wider_class() -> None:
    assert list(definitions(NOUNS)) == [
        ("heterotroph", "an organism that lives on others", 3, "organism"),
        ("parent", "a being from which younger ones are obtained", 2, "being"),
        ("sea urchin", "shallow-water organism of the sea", 14, "organism"),
    ]


def test_a_table_of_categories_is_read_behind_its_three_lines_of_description() -> None:
    table = 'Category\tText\nd\tstring\nclass\t\nearn\tnet "profit\tup\ntrade\tno surplus\n'
    assert category_rows(table) == [
        {"text": 'net "profit\tup', "label": "earn"},
        {"text": "no surplus", "label": "trade"},
    ]


def test_every_text_has_a_question_on_its_word_and_every_other_one_on_a_word_that_is_not_there() -> None:
    entry = next(definitions(NOUNS))
    asked = [one["question"] for one in squad_paragraph(entry, "gnome", 1)["qas"]]
    assert asked == ["What is heterotroph?", "What is gnome?"]
    assert len(squad_paragraph(entry, "gnome", 2)["qas"]) == 1
    paragraph = squad_paragraph(entry, "others", 1)
    assert len(paragraph["qas"]) == 1, "the text contains the word others"
    (answer,) = paragraph["qas"][0]["answers"]
    assert paragraph["context"][answer["answer_start"] :].startswith("organism that lives")
    assert not paragraph["qas"][0]["is_impossible"]


def test_questions_on_shapes_are_written_as_vqa_is() -> None:
    questions, annotations = vqa_files([["what shape ?", "circle", 3], ["is it red ?", "no", 3]], "val2014", 100)
    assert questions["questions"][1] == {"image_id": 103, "question_id": 1001, "question": "is it red ?"}
    written = annotations["annotations"]
    assert [one["question_id"] for one in written] == [1000, 1001]
    assert [one["answer_type"] for one in written] == ["other", "yes/no"]
    assert [answer["answer"] for answer in written[0]["answers"]] == ["circle"] * 10
    assert vqa_name("val2014", 103) == "COCO_val2014_000000000103.jpg"


def test_mobilenets_weights_get_the_names_and_shapes_that_transformers_has() -> None:
    positions = {0: (0, 1), 1: (0, 1, 3, 4), 18: (0, 1)}  # of convolutions and norms among the layers of a block
    names = set()
    for block in range(19):
        for position in positions.get(block, (0, 1, 3, 4, 6, 7)):
            norm = position % 3 == 1
            for value in ("weight", "bias", "running_mean", "running_var") if norm else ("weight",):
                inside = f"{position}" if block in (0, 18) else f"conv.{position}"
                names.add(mobilenet_name(f"features.{block}.{inside}.{value}"))
    expected = MobileNetV2Model(MobileNetV2Config()).state_dict()
    assert names == {name for name in expected if not name.endswith("num_batches_tracked")}
    assert mobilenet_name("features.2.conv.4.running_var") == "layer.0.conv_3x3.normalization.running_var"


def test_pictures_have_their_sentence_and_their_folders_as_captions() -> None:
    assert shelf_in_words(Path("animals/birds/grey_goose-1.png")) == "grey goose 1 among birds animals"
    written = captions_file([("A goose.", "goose among birds"), ("A frog.", "frog")], 10)
    assert [image["file_name"] for image in written["images"]] == ["000000000010.jpg", "000000000011.jpg"]
    assert [(one["image_id"], one["caption"]) for one in written["annotations"]] == [
        (10, "A goose."), (10, "goose among birds"), (11, "A frog."), (11, "frog"),
    ]  # fmt: skip


def test_a_transparent_picture_is_saved_on_white_at_the_middle(tmp_path: Path) -> None:
    written = io.BytesIO()
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(written, "PNG")
    save_on_white(written.getvalue(), tmp_path / "one.jpg", 8)
    with Image.open(tmp_path / "one.jpg") as saved:
        assert saved.size == (8, 8)
        assert min(saved.getpixel((4, 0))) > 240
        red, green, _ = saved.getpixel((4, 4))
        assert red > 240
        assert green < 40
