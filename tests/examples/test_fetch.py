"""What the fetched sets are made of, from a few lines in the form of the originals."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
