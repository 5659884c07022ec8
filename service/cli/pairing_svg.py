"""Draws a pairing as SVG: the weights of source and target in two columns, with a line for each pair."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from mergenet_core.pairing.result import How, Pairing, WeightPair

_COLOURS: dict[How, str] = {"same": "#0072b2", "names": "#009e73", "carried": "#e69f00", "free": "#cc3311"}
"""Colours that people with colour blindness can tell apart; free pairs are dashed as well."""
_MEANINGS: dict[How, str] = {
    "same": "an axis has the same meaning in both models",
    "names": "an axis is shared by the names of its entries",
    "carried": "both axes are mapped, starting from a shared axis",
    "free": "an axis is mapped freely, without a shared axis",
}
_GREY = "#999999"
_ROW, _TOP, _LEFT, _WIDTH, _GAP, _LAYER = 18, 56, 24, 430, 220, 64
_NAME_LETTERS = 68
"""Longest weight name that fits its column; longer ones lose their beginning."""


def draw(pairing: Pairing) -> str:
    """The picture as SVG text, with the pairs in the order of the target's layers and coloured by how their axes agree.

    The target's unpaired weights are listed below the pairs; the reason of each is its tooltip.
    """
    pairs = [pair for pair in pairing.pairs if pair.rank is not None]
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    paired = {pair.target for pair in pairing.pairs}
    unpaired = {name: reason for name, reason in pairing.unpaired.items() if name not in paired}
    height = _TOP + _ROW * (max(len(sources), len(pairs) + len(unpaired)) + len(_MEANINGS) + 3)
    right = _LEFT + _WIDTH + _GAP
    elements = [
        _text(_LEFT + _WIDTH, 28, "source", "end", weight="bold"),
        _text(right, 28, f"target, by method {pairing.method}", weight="bold"),
    ]
    source_y = {name: _TOP + _ROW * _spread(index, len(sources), len(pairs)) for index, name in enumerate(sources)}
    elements += [_text(_LEFT + _WIDTH, y, name, "end") for name, y in source_y.items()]
    last = None
    for index, pair in enumerate(pairs):
        y = _TOP + _ROW * index
        if pair.layer != last and pair.layer is not None:
            elements.append(_text(right + _WIDTH + _LAYER, y, f"layer {pair.layer}", "end", colour=_GREY))
        last = pair.layer
        elements.append(_line(pairing, pair, source_y[pair.source], y, right))
        elements.append(_text(right, y, pair.target, title=_coverage(pair)))
    for index, (name, reason) in enumerate(unpaired.items()):
        y = _TOP + _ROW * (len(pairs) + index)
        elements.append(_text(right, y, name, colour=_GREY, title=f"not paired: {reason}"))
    for index, (how, meaning) in enumerate(_MEANINGS.items()):
        y = height - _ROW * (len(_MEANINGS) - index)
        elements += [_stroke(how, _LEFT, y - 4, _LEFT + 40, y - 4, ""), _text(_LEFT + 52, y, meaning)]
    width = right + _WIDTH + _LAYER + _LEFT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="system-ui, sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *elements,
            "</svg>\n",
        ]
    )


def how_of(pairing: Pairing, pair: WeightPair) -> How | None:
    """How the axes of a pair agree: free if either is, otherwise the closest agreement of the two."""
    found = {pairing.axes[name].how for name in (pair.out, pair.inp) if name in pairing.axes}
    order: tuple[How, ...] = ("free", "names", "same", "carried")
    return next((how for how in order if how in found), None)


def _line(pairing: Pairing, pair: WeightPair, left: float, right_y: float, right: float) -> str:
    axes = [
        f"{name}: {pairing.axes[name].how}, {pairing.axes[name].shared_size:,} of {pairing.axes[name].target_size:,}"
        for name in (pair.out, pair.inp)
        if name in pairing.axes
    ]
    title = "; ".join([f"{pair.source} to {pair.target}", *axes])
    return _stroke(how_of(pairing, pair), _LEFT + _WIDTH + 8, left - 4, right - 8, right_y - 4, title)


def _stroke(how: How | None, x1: float, y1: float, x2: float, y2: float, title: str) -> str:
    colour = _COLOURS[how] if how is not None else _GREY
    dashed = ' stroke-dasharray="6 4"' if how == "free" else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="2"{dashed}>'
        f"{_title(title)}</line>"
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", *, weight: str = "normal", colour: str = "#222222",
    title: str = "",
) -> str:  # fmt: skip
    short = text if len(text) <= _NAME_LETTERS else "…" + text[1 - _NAME_LETTERS :]
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{_title(title or (text if short != text else ''))}{escape(short)}</text>"
    )


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _coverage(pair: WeightPair) -> str:
    sides = "×".join(map(str, pair.target_shape))
    return f"{pair.target} {sides}: {pair.parameters:,} of {math.prod(pair.target_shape):,} entries"


def _spread(index: int, count: int, rows: int) -> float:
    """The row of an entry, with a short column spread over the rows of a longer one."""
    return index if count >= rows else index * (rows - 1) / max(1, count - 1)
