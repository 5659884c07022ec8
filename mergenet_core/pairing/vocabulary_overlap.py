"""Which entries of two tokenizers are the same piece of text, so that their embedding rows have the same meaning.

Tokenizers write the same mark differently: `##ing` of WordPiece, and `ing` without the `Ġ` of byte-level BPE or the `▁`
of SentencePiece, all continue a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mergenet_core.model_files.model_info import Vocabulary

LEAST_SHARE = 0.1
"""Below this share of the target's entries two vocabularies have too little in common to be an anchor."""
_MARKS = ("##", "Ġ", "▁")
_SPECIALS = {
    "begin": ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>"),
    "end": ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "padding": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "mask": ("[MASK]", "<mask>"),
}
_SPECIAL = {spelt: meaning for meaning, spellings in _SPECIALS.items() for spelt in spellings}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Overlap:
    """The target's rows that have a counterpart in the source."""

    cover: tuple[int, ...]
    """Rows of the target, ascending."""
    order: tuple[int, ...]
    """The source's row for each."""
    share: float
    """Of the target's entries."""


_Meaning = tuple[str, bool | None]
"""A token's text, and whether it begins a word; None where that makes no difference."""


def overlap(source: Vocabulary, target: Vocabulary, source_rows: int, target_rows: int) -> Overlap:
    """Match the entries of two vocabularies by their text, a cased one with an uncased one without regard to case.

    Rows beyond an embedding's own are left out.
    """
    sources = _meanings(source.tokens, source_rows)
    targets = _meanings(target.tokens, target_rows)
    exact = _first_rows((meaning, row) for row, meaning in sources.items())
    folded: dict[_Meaning, int] = {}
    if _is_uncased(sources.values()) != _is_uncased(targets.values()):
        folded = _first_rows((_folded(meaning), row) for row, meaning in sources.items())
    found = {}
    for row, meaning in targets.items():
        match = exact.get(meaning, folded.get(_folded(meaning)))
        if match is not None:
            found[row] = match
    cover = tuple(sorted(found))
    return Overlap(cover, tuple(found[row] for row in cover), len(cover) / max(1, len(targets)))


def _meanings(tokens: Mapping[str, int], rows: int) -> dict[int, _Meaning]:
    mark = _mark(tokens)
    read = _reader(mark, "Ġ" if mark == "Ġ" else None)
    return {row: read(token) for token, row in tokens.items() if 0 <= row < rows}


def _mark(tokens: Iterable[str]) -> str | None:
    """The mark that a vocabulary uses; None where every token is a whole word."""
    counts = Counter(next((mark for mark in _MARKS if token.startswith(mark)), "") for token in tokens)
    counts.pop("", None)
    return counts.most_common(1)[0][0] if counts else None


def _reader(mark: str | None, bytes_mark: str | None) -> Callable[[str], _Meaning]:
    def read(token: str) -> _Meaning:
        if token in _SPECIAL:
            return (f"special: {_SPECIAL[token]}", None)
        if found := _BYTE.fullmatch(token):
            return (chr(int(found[1], 16)), None)
        marked = mark is not None and token.startswith(mark) and token != mark
        text = token[len(mark) :] if marked and mark is not None else token
        begins = marked if mark in ("Ġ", "▁") else not marked
        if bytes_mark is not None:
            text = _text_of_bytes(text)
        return (text, begins if any(letter.isalnum() for letter in text) else None)

    return read


def _text_of_bytes(token: str) -> str:
    """The text behind a byte-level token, in which every byte is shown as one printable letter."""
    try:
        return bytes(_BYTES[letter] for letter in token).decode()
    except (KeyError, UnicodeDecodeError):
        return token


def _shown_bytes() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _shown_bytes()


def _first_rows(entries: Iterable[tuple[_Meaning, int]]) -> dict[_Meaning, int]:
    """The lowest row of each meaning: tokenizers list frequent tokens first."""
    found: dict[_Meaning, int] = {}
    for meaning, row in sorted(entries, key=lambda entry: entry[1]):
        found.setdefault(meaning, row)
    return found


def _folded(meaning: _Meaning) -> _Meaning:
    return (meaning[0].lower(), meaning[1])


def _is_uncased(meanings: Iterable[_Meaning]) -> bool:
    texts = [text for text, begins in meanings if begins is not None]
    return not any(text != text.lower() for text in texts)
