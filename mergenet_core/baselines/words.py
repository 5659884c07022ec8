"""TF-IDF of the words of texts.

Legend: n texts, v words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

_WORD = re.compile(r"\b\w\w+\b")


def tf_idf(train: Sequence[str], *others: Sequence[str]) -> list[csr_matrix]:
    """Training texts and others by the words of the training texts; a row with any has length 1. Shapes: (n, v).

    Equation: count of the word in the text · (ln((1 + n) / (1 + texts with the word)) + 1), for n training texts. A
    word is two or more letters or digits, in lower case; words that no training text has are left out.
    """
    counted = [_words(text) for text in train]
    texts_with = Counter(word for words in counted for word in words)
    weight = {word: float(np.log((1 + len(train)) / (1 + count)) + 1) for word, count in texts_with.items()}
    column = {word: index for index, word in enumerate(sorted(texts_with))}
    splits = [counted, *([_words(text) for text in texts] for texts in others)]
    return [_rows(split, column, weight) for split in splits]


def _rows(texts: Sequence[Counter[str]], column: dict[str, int], weight: dict[str, float]) -> csr_matrix:
    values: list[NDArray[np.floating]] = []
    columns: list[int] = []
    for words in texts:
        known = [word for word in words if word in column]
        row = np.array([words[word] * weight[word] for word in known])
        values.append(row / max(float(np.linalg.norm(row)), 1e-12))
        columns += [column[word] for word in known]
    ends = np.cumsum([0, *map(len, values)])
    return csr_matrix((np.concatenate(values), columns, ends), shape=(len(texts), len(column)))


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))
