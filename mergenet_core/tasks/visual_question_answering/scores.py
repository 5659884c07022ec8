"""Accuracy over the answers of several people, as VQA v2.0's official script has defined it since its fix of 2021.

Where people's answers differ, theirs and the model's are normalised in the same steps: punctuation, then numbers,
articles and contractions. Where all people gave the same answer, the model's is compared with it as it is.
Values are fractions where the official script prints percent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = frozenset(("a", "an", "the"))
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
_SHORTENED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in _SHORTENED.split() for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}
"""Words that lack one apostrophe, and the one that the official table takes from a word."""
_ENOUGH = 3
"""An answer that so many people gave scores 1."""


def without_punctuation(text: str) -> str:
    """Remove punctuation as the official script does.

    A mark is removed where the text has it next to a space or holds a number with a comma, else it becomes a space; a
    full stop is removed where no digit follows.
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in _MARKS:
        goes = number or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if goes else " ")
    return _STOP.sub("", found)


def tidy(text: str) -> str:
    """Spaces for line breaks and tabs, and none at either end."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, numbers up to ten in digits, contractions with their apostrophe."""
    words = without_punctuation(tidy(text)).lower().split()
    kept = (_WORDS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept if word not in _ARTICLES)


@dataclass(frozen=True)
class PeoplesAnswers:
    """People's answers to one question in the form in which a model's answer is compared with them."""

    compared: tuple[str, ...]
    """Tidied where all people gave the same answer, else normalised."""
    unanimous: bool
    """Whether all people gave the same answer; the model's answer is then compared as it is, else normalised."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> PeoplesAnswers:
        """The answers as people wrote them."""
        tidied = tuple(map(tidy, texts))
        unanimous = len(set(tidied)) < 2
        return cls(tidied if unanimous else tuple(map(normalise, tidied)), unanimous)

    @property
    def most_common(self) -> str:
        """The answer that most people gave, in its compared form; the earliest of those that are as frequent."""
        return max(self.compared, key=self.compared.count)

    def scores(self) -> dict[str, float]:
        """The score of each of people's answers as the model's answer; any other answer scores 0.

        Equation: the mean over the people left out, one at a time, of min(others who gave the answer / 3, 1).
        """
        people = len(self.compared)
        return {
            answer: (given * min((given - 1) / _ENOUGH, 1) + (people - given) * min(given / _ENOUGH, 1)) / people
            for answer, given in Counter(self.compared).items()
        }

    def score(self, answer: str) -> float:
        """The score of a model's answer."""
        return self.scores().get(tidy(answer) if self.unanimous else normalise(answer), 0.0)
