"""What a trial's model scored on each validation example, in a form that is small enough for a job's record."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Literal

from mergenet_core.records.record import Record

EXAMPLES_MAX = 4096
"""The most examples that are stored for a trial: 512 bytes of bits, or 8 KiB of numbers."""


class Outcomes(Record):
    """The metric's term for each validation example; the mean over all examples is the metric.

    Of a split with more than `EXAMPLES_MAX` examples every k-th is stored, the same ones for each model.
    """

    count: int
    """How many examples are stored."""
    every: int
    """k: 1 if all examples are stored."""
    form: Literal["bits", "float16"]
    """`bits` where every term is 0 or 1, else half-precision numbers, little-endian."""
    data: str
    """The terms in Base64; of bits, the first example is the lowest bit of the first byte."""

    def terms(self) -> list[float]:
        """The stored terms, in the order of the split."""
        packed = base64.b64decode(self.data)
        if self.form == "bits":
            return [float(packed[index // 8] >> index % 8 & 1) for index in range(self.count)]
        return list(struct.unpack(f"<{self.count}e", packed))


def pack_outcomes(terms: Sequence[float]) -> Outcomes:
    """Store the terms of a split, of a large one evenly spaced ones."""
    every = -(-len(terms) // EXAMPLES_MAX) or 1
    kept = terms[::every]
    if set(kept) <= {0.0, 1.0}:
        bits = sum(1 << index for index, term in enumerate(kept) if term)
        packed = bits.to_bytes(-(-len(kept) // 8), "little")
        return _outcomes(len(kept), every, "bits", packed)
    return _outcomes(len(kept), every, "float16", struct.pack(f"<{len(kept)}e", *kept))


def _outcomes(count: int, every: int, form: Literal["bits", "float16"], packed: bytes) -> Outcomes:
    return Outcomes(count=count, every=every, form=form, data=base64.b64encode(packed).decode())
