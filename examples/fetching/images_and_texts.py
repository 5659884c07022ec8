"""Sets of images and texts, in the forms of VQA v2.0's and MSCOCO's files."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from pathlib import Path
from typing import Any

from .registries import debian_files, from_pypi

EASY_VQA = ("easy-vqa==1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f")
STAMPS = ("tuxpaint-stamps-default", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34")
STAMPS_TEST = 150
STAMP_SIZE = 64
VQA_PEOPLE = 10


def easy_vqa(folder: Path) -> str:
    """Questions on one coloured shape in VQA v2.0's files; its ten people always agree."""
    with zipfile.ZipFile(io.BytesIO(from_pypi(*EASY_VQA))) as wheel:
        counts = []
        for split, subset, first in (("train", "train2014", 0), ("test", "val2014", 100_000)):
            inside = f"easy_vqa/data/{split}"
            asked = json.loads(wheel.read(f"{inside}/questions.json"))
            (folder / subset).mkdir()
            for image in sorted({image for _, _, image in asked}):
                save_on_white(
                    wheel.read(f"{inside}/images/{image}.png"), folder / subset / vqa_name(subset, first + image)
                )
            questions, annotations = vqa_files(asked, subset, first)
            (folder / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps(questions))
            (folder / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps(annotations))
            counts.append(len(asked))
    return f"{counts[0]} and {counts[1]} questions from the PyPI package {EASY_VQA[0]}"


def vqa_name(subset: str, image: int) -> str:
    """The name of an image file in VQA v2.0."""
    return f"COCO_{subset}_{image:012d}.jpg"


def vqa_files(asked: list[tuple[str, str, int]], subset: str, first: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The questions' file and the annotations' file."""
    about = {"info": {"description": "easy-VQA in VQA v2.0's form"}, "data_type": "mscoco", "data_subtype": subset}
    questions, annotations = [], []
    for number, (question, answer, image) in enumerate(asked):
        ids = {"image_id": first + image, "question_id": 10 * first + number}
        people = [{"answer": answer, "answer_confidence": "yes", "answer_id": 1 + one} for one in range(VQA_PEOPLE)]
        kind = "yes/no" if answer in ("yes", "no") else "other"
        questions.append({**ids, "question": question})
        annotations.append({**ids, "answer_type": kind, "multiple_choice_answer": answer, "answers": people})
    return {**about, "questions": questions}, {**about, "annotations": annotations}


def stamps(folder: Path) -> str:
    """Tux Paint's stamps in MSCOCO's captions file; their captions are a sentence, and the name and the folders."""
    with debian_files(*STAMPS) as unpacked:
        shelves = unpacked / "usr/share/tuxpaint/stamps"
        by_sentence: dict[str, Path] = {}
        for picture in sorted(shelves.rglob("*.png")):
            text = picture.with_suffix(".txt")
            if text.is_file():  # a mirrored copy has none; of pictures with the same sentence one is kept
                by_sentence.setdefault(
                    text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip(), picture
                )
        found = [(sentence, picture) for sentence, picture in by_sentence.items() if sentence]
        random.Random(0).shuffle(found)
        (folder / "annotations").mkdir()
        for subset, part, first in (("val2017", found[:STAMPS_TEST], 10_000), ("train2017", found[STAMPS_TEST:], 0)):
            (folder / subset).mkdir()
            for number, (_, picture) in enumerate(part):
                save_on_white(picture.read_bytes(), folder / subset / f"{first + number:012d}.jpg", STAMP_SIZE)
            captions = [(sentence, shelf_in_words(picture.relative_to(shelves))) for sentence, picture in part]
            written = json.dumps(captions_file(captions, first))
            (folder / "annotations" / f"captions_{subset}.json").write_text(written)
    return f"{len(found)} pictures from the Debian package {STAMPS[0]}"


def shelf_in_words(picture: Path) -> str:
    """`animals/birds/grey-goose.png` in words."""
    *shelves, name = re.split(r"/", picture.with_suffix("").as_posix())
    return re.sub(r"[\W_]+", " ", f"{name} among {' '.join(reversed(shelves))}")


def captions_file(captions: list[tuple[str, ...]], first: int) -> dict[str, Any]:
    """The content of a captions file for images numbered from `first`, each with these captions."""
    images = [
        {"id": first + number, "file_name": f"{first + number:012d}.jpg", "height": STAMP_SIZE, "width": STAMP_SIZE}
        for number in range(len(captions))
    ]
    annotations = [
        {"image_id": first + number, "id": 10 * (first + number) + index, "caption": caption}
        for number, own in enumerate(captions)
        for index, caption in enumerate(own)
    ]
    return {"info": {"description": "Tux Paint's stamps"}, "images": images, "licenses": [], "annotations": annotations}


def save_on_white(picture: bytes, path: Path, size: int | None = None) -> None:
    """Write a picture as JPEG, on white where it is transparent."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        drawn = opened.convert("RGBA")
    if size is not None:
        drawn.thumbnail((size, size))
    side = (size or drawn.width, size or drawn.height)
    paper = Image.new("RGB", side, "white")
    paper.paste(drawn, ((side[0] - drawn.width) // 2, (side[1] - drawn.height) // 2), drawn)
    paper.save(path, "JPEG", quality=95, subsampling=0)
