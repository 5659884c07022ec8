"""A tokenizer whose tokens are words, with pairs and a mask as BERT's; and questions on texts of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLOURS = ["red", "blue", "green", "grey", "black", "white", "pink", "brown"]
THINGS = ["cat", "dog", "house", "river", "tree", "stone", "boat", "lamp", "chair", "cloud"]
WORDS = [*SPECIAL, *COLOURS, *THINGS, "what", "colour", "is", "the", *"now?.,abcdefgh"]


def write_words(folder: Path, words: list[str] = WORDS) -> None:
    tokenizer = Tokenizer(models.WordPiece({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    kinds = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="[MASK]", model_input_names=kinds, **names
    ).save_pretrained(folder)


def articles(count: int, seed: int, things: int = 3) -> list[dict[str, Any]]:
    """Texts of some coloured things, each with two questions that it answers and one that it does not."""
    draw = random.Random(seed)
    paragraphs = []
    for number in range(count):
        named = draw.sample(THINGS, things + 1)
        colours = draw.choices(COLOURS, k=things)
        context, starts = "", []
        for thing, colour in zip(named, colours, strict=False):
            context += f"the {thing} is "
            starts.append(len(context))
            context += f"{colour} . "
        qas = []
        for index, thing in enumerate([*named[:2], named[-1]]):
            found = [{"text": colours[index], "answer_start": starts[index]}] if index < 2 else []
            qas.append(
                {
                    "id": f"{seed}-{number}-{index}",
                    "question": f"what colour is the {thing} ?",
                    "answers": found,
                    "is_impossible": not found,
                }
            )
        paragraphs.append({"context": context, "qas": qas})
    return [{"title": "colours", "paragraphs": paragraphs}]


def write_squad(path: Path, count: int, seed: int, things: int = 3) -> None:
    """SQuAD v2.0's own form."""
    path.write_text(json.dumps({"version": "v2.0", "data": articles(count, seed, things)}))


def squad_rows(count: int, seed: int, things: int = 3) -> list[dict[str, Any]]:
    """The same questions in the columns of the hub's tables."""
    return [
        {
            "id": asked["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {key: [one[key] for one in asked["answers"]] for key in ("text", "answer_start")},
        }
        for article in articles(count, seed, things)
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


def write_reviews(folder: Path, count: int) -> None:
    """IMDb's archive: a folder of texts a label, one of unlabelled texts, and other files."""
    for label, word in (("pos", "good"), ("neg", "bad"), ("unsup", "who knows")):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            (folder / label / f"{number}_7.txt").write_text(f"{word} apple {'the ' * number}", encoding="utf-8")
    (folder / "labeledBow.feat").write_text("9 0:9")
    (folder / "urls_pos.txt").write_text("http://example.org")
