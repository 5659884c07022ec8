"""Images of coloured things in the forms of VQA v2.0's and MSCOCO's files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from tests.tasks.words import COLOURS, THINGS

RGB = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30), "grey": (120, 120, 120)}
SIZE = 8
PEOPLE = 10


def write_image(path: Path, colour: str, bright: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = tuple(min(255, value + bright) for value in RGB[colour])
    Image.new("RGB", (SIZE, SIZE), shade).save(path)


def write_vqa(folder: Path, subset: str, images: int, seed: int) -> Path:
    """Two questions an image, on its colour and whether it is that colour; returns the questions' file."""
    draw = random.Random(seed)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        colour = draw.choice(list(RGB))
        number = 1000 * seed + image
        write_image(folder / subset / f"COCO_{subset}_{number:012d}.jpg", colour, draw.randrange(20))
        thing, asked = draw.choice(THINGS), draw.choice(list(RGB))
        right = "yes" if asked == colour else "no"
        for index, (text, usual, kind) in enumerate(
            ((f"what colour is the {thing} ?", colour, "other"), (f"is the {thing} {asked} ?", right, "yes/no"))
        ):
            answers = [usual] * draw.randint(7, PEOPLE)
            answers += draw.choices(COLOURS, k=PEOPLE - len(answers))
            key = 10 * number + index
            questions.append({"image_id": number, "question": text, "question_id": key})
            annotations.append(
                {
                    "question_id": key,
                    "image_id": number,
                    "question_type": "none of the above",
                    "answer_type": kind,
                    "multiple_choice_answer": usual,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": person + 1}
                        for person, answer in enumerate(answers)
                    ],
                }
            )
    about = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": subset}
    path = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    path.write_text(json.dumps(about | {"task_type": "Open-Ended", "questions": questions}))
    (folder / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps(about | {"annotations": annotations}))
    return path


def write_captions(folder: Path, subset: str, images: int, seed: int) -> Path:
    """One to three captions an image, each with its colour; returns the captions' file."""
    draw = random.Random(seed)
    named: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        colour, number = list(RGB)[image % len(RGB)], 1000 * seed + image
        name = f"{number:012d}.jpg"
        write_image(folder / subset / name, colour, draw.randrange(20))
        named.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
        for _ in range(1 + image % 3):
            caption = f"the {draw.choice(THINGS)} is {colour}"
            annotations.append({"image_id": number, "id": len(annotations), "caption": caption})
    path = folder / "annotations" / f"captions_{subset}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"info": {}, "images": named, "licenses": [], "annotations": annotations}))
    return path
