"""Exact match and F1 as SQuAD v2.0 defines them, and the threshold beyond which a question counts as unanswerable.

Values are fractions where the official script prints percent.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
Measure: TypeAlias = Callable[[str, str], float]
"""How well an answer agrees with a text that counts as right."""


@dataclass(frozen=True)
class Judged:
    """A model's answer to one question, and what counts as right."""

    answer: str
    golds: tuple[str, ...]
    """Texts that count as right; empty for a question without an answer."""
    null_score: float
    """The score of no answer minus the score of `answer`."""


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, words separated by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, gold: str) -> float:
    """1 where both texts are the same once normalised."""
    return float(normalise(answer) == normalise(gold))


def f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall over words; two empty texts score 1, one empty text scores 0."""
    found, wanted = normalise(answer).split(), normalise(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    # 2PR / (P + R) with P = shared / found, R = shared / wanted
    return 2 * shared / (len(found) + len(wanted))


def best_threshold(judged: Sequence[Judged]) -> float:
    """The null score above which no answer is given, chosen so that F1 over these questions is largest.

    Of thresholds that do equally well the lowest is taken, as in the official script.
    """
    ordered = sorted(judged, key=lambda one: one.null_score)
    total = float(sum(not one.golds for one in ordered))
    best, threshold = total, ordered[0].null_score - 1.0
    for one in ordered:
        total += _over_golds(one, f1) if one.golds else -float(bool(one.answer))
        if total > best:
            best, threshold = total, one.null_score
    return threshold


def squad_scores(judged: Sequence[Judged], threshold: float) -> dict[str, float]:
    """`exact` and `f1` over all questions, over those with an answer (`HasAns_`) and those without (`NoAns_`)."""
    answerable = [bool(one.golds) for one in judged]
    scores = {}
    for name, measure in (("exact", exact), ("f1", f1)):
        found = question_scores(judged, threshold, measure)
        scores[name] = sum(found) / len(found)
        for part, wanted in (("HasAns", True), ("NoAns", False)):
            of_part = [score for score, has in zip(found, answerable, strict=True) if has is wanted]
            if of_part:
                scores[f"{part}_{name}"] = sum(of_part) / len(of_part)
    return scores


def question_scores(judged: Sequence[Judged], threshold: float, measure: Measure) -> list[float]:
    """The score of each question by `exact` or `f1`; no answer is given above the threshold."""
    return [float(not one.golds) if one.null_score > threshold else _over_golds(one, measure) for one in judged]


def _over_golds(one: Judged, measure: Measure) -> float:
    # a gold that normalises to nothing is dropped, and a question without any is right when nothing is answered
    golds = [gold for gold in one.golds if normalise(gold)] or [""]
    return max(measure(one.answer, gold) for gold in golds)
