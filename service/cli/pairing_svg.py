"""A pairing as a picture: the weights of source and target in two columns, a line between those that pair."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from mergenet_core.pairing.result import How, Pairing, WeightPair

_COLOURS: dict[How, str] = {"same": "#0072b2", "names": "#009e73", "carried": "#e69f00", "free": "#cc3311"}
"""Told apart by eyes of every kind; the free ones are dashed as well."""
_MEANINGS: dict[How, str] = {
    "same": "an axis means the same in both",
    "names": "an axis is shared by the names of its entries",
    "carried": "both axes have maps, carried from a shared one",
    "free": "a map with no shared axis behind it",
}
_OTHER = "#999999"
_ROW, _TOP, _LEFT, _WIDTH, _GAP, _LAYER = 18, 56, 24, 430, 220, 64


def draw(pairing: Pairing) -> str:
    """The picture as SVG: weights in the order of the target's data, coloured by how their axes are anchored.

    The target's weights that do not pair stand below, each with its reason where the pointer rests.
    """
    pairs = [pair for pair in pairing.pairs if pair.rank is not None]
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    taken = {pair.target for pair in pairing.pairs}
    rest = {name: reason for name, reason in pairing.unpaired.items() if name not in taken}
    height = _TOP + _ROW * (max(len(sources), len(pairs) + len(rest)) + len(_MEANINGS) + 3)
    right = _LEFT + _WIDTH + _GAP
    parts = [
        _text(_LEFT + _WIDTH, 28, "source", "end", weight="bold"),
        _text(right, 28, f"target, by method {pairing.method}", weight="bold"),
    ]
    at = {name: _TOP + _ROW * _middle(place, len(sources), len(pairs)) for place, name in enumerate(sources)}
    parts += [_text(_LEFT + _WIDTH, y, name, "end") for name, y in at.items()]
    last = None
    for place, pair in enumerate(pairs):
        y = _TOP + _ROW * place
        if pair.layer != last and pair.layer is not None:
            parts.append(_text(right + _WIDTH + _LAYER, y, f"layer {pair.layer}", "end", colour=_OTHER))
        last = pair.layer
        parts += [_line(pairing, pair, at[pair.source], y, right), _text(right, y, pair.target, title=_told(pair))]
    for place, (name, reason) in enumerate(rest.items()):
        y = _TOP + _ROW * (len(pairs) + place)
        parts.append(_text(right, y, name, colour=_OTHER, title=f"not paired: {reason}"))
    for place, (how, meaning) in enumerate(_MEANINGS.items()):
        y = height - _ROW * (len(_MEANINGS) - place)
        parts += [_stroke(how, _LEFT, y - 4, _LEFT + 40, y - 4, ""), _text(_LEFT + 52, y, meaning)]
    width = right + _WIDTH + _LAYER + _LEFT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="system-ui, sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def how_of(pairing: Pairing, pair: WeightPair) -> How | None:
    """How the weight as a whole is anchored: by its best anchor, and free where either axis is."""
    met = {pairing.axes[name].how for name in (pair.out, pair.inp) if name in pairing.axes}
    order: tuple[How, ...] = ("free", "names", "same", "carried")
    return next((how for how in order if how in met), None)


def _line(pairing: Pairing, pair: WeightPair, left: float, right_y: float, right: float) -> str:
    axes = [
        f"{name}: {pairing.axes[name].how}, {pairing.axes[name].shared_size:,} of {pairing.axes[name].target_size:,}"
        for name in (pair.out, pair.inp)
        if name in pairing.axes
    ]
    title = "; ".join([f"{pair.source} to {pair.target}", *axes])
    return _stroke(how_of(pairing, pair), _LEFT + _WIDTH + 8, left - 4, right - 8, right_y - 4, title)


def _stroke(how: How | None, x1: float, y1: float, x2: float, y2: float, title: str) -> str:
    colour = _COLOURS[how] if how is not None else _OTHER
    dashed = ' stroke-dasharray="6 4"' if how == "free" else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="2"{dashed}>'
        f"{_title(title)}</line>"
    )


def _text(
    x: float, y: float, words: str, anchor: str = "start", *, weight: str = "normal", colour: str = "#222222",
    title: str = "",
) -> str:  # fmt: skip
    short = words if len(words) <= _LETTERS else "…" + words[1 - _LETTERS :]
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{_title(title or (words if short != words else ''))}{escape(short)}</text>"
    )


_LETTERS = 68


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""


def _told(pair: WeightPair) -> str:
    sides = "×".join(map(str, pair.target_shape))
    return f"{pair.target} {sides}: {pair.parameters:,} of {math.prod(pair.target_shape):,} entries"


def _middle(place: int, count: int, rows: int) -> float:
    """The shorter column is spread along the longer one."""
    return place if count >= rows else place * (rows - 1) / max(1, count - 1)
