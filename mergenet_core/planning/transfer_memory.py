"""What a transfer adds to a process, from the pairing and the transfer's settings alone.

A pair has a target's matrix m × n and a source's M × N, re-encoded at rank r; a number is 4 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.pairing.result import AxisPair, Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec

_BYTES = 4
_LEARNED = 4
"""Copies of an adapter: itself, its gradient and two moments."""
_MAP = 2
"""Numbers kept for an entry of a map between units: its own, and its share of the products with the map."""
_GRAPH = 8
"""Numbers kept for an entry of a move's factors, r(m + n), while the loss is carried through it."""
_RAW_LAYERS, _RAW_HEADS, _RAW_INNER = 2, 8, 128
"""Layers of the adapter of `lpka-raw`, an attention's heads, and its least inner width."""


@dataclass(frozen=True)
class TransferMemory:
    """What a process holds and sends for a transfer."""

    device_bytes: int = 0
    exchanged: int = 0
    """Numbers that the processes exchange in one transfer."""


@dataclass(frozen=True)
class _Numbers:
    """Of one pair."""

    factors: int
    """The source's, or its whole weight."""
    adapter: int
    graph: int = 0
    exchanged: int = 0


def transfer_memory(pairing: Pairing, spec: TransferSpec) -> TransferMemory:
    """What a transfer adds to a process.

    Equation: the source's factors or weights, the adapter four times (its gradient and two moments), what its graph
    keeps, and for `anchored` the maps between units.
    """
    if pairing.method in ("project", "fit"):  # the estimate counts the source that a fit runs
        return TransferMemory()
    found = [_of_pair(pair, pairing, spec) for pair in pairing.pairs if pair.rank is not None]
    held = sum(one.factors + _LEARNED * one.adapter + one.graph for one in found) + _maps(pairing)
    return TransferMemory(_BYTES * held, sum(one.exchanged for one in found))


def _of_pair(pair: WeightPair, pairing: Pairing, spec: TransferSpec) -> _Numbers:
    target, source = (matrix_shape(shape, pair.form) for shape in (pair.target_shape, pair.source_shape))
    match pairing.method:
        case "lpka":
            return _lpka(target, source, pair.rank or 0, spec)
        case "lpka-raw":
            return _lpka_raw(target, source)
    return _anchored(target, source, pair.rank or 0, projected=_is_projected(pairing))


def _lpka(target: tuple[int, int], source: tuple[int, int], rank: int, spec: TransferSpec) -> _Numbers:
    """Exchanged: r(m + n) for the target's factors and as much for their gradient; as a hypernetwork once more."""
    (m, n), (M, N) = target, source
    return _Numbers(
        factors=rank * (M + N),
        adapter=spec.width * (2 * (m + n) + M + N) + 8 * spec.layers * spec.width**2,
        exchanged=(3 if spec.update == "hypernetwork" else 2) * rank * (m + n),
    )


def _lpka_raw(target: tuple[int, int], source: tuple[int, int]) -> _Numbers:
    """The released code's adapter, as `mergenet_core.transfer.methods.lpka_raw` builds it.

    Equation: a layer has four attentions of 2i(d + e) + 3i + 3d parameters, between d-wide tokens of the target and
    e-wide tokens of the source, i wide inside, a feed-forward of 4n² + 3n and a norm of 2n. Of an attention between k
    and t tokens the graph keeps 2i(k + t) + 2kd + 2k numbers and 3kt for each head; of the feed-forward, its dropout
    and its norm 7mn + 2m and its normalized matrices, 4n²; of a layer its output, mn. The whole weight is gathered
    before and after the target's step, and is held with the adapter's output and the difference of the two.
    """
    (m, n), (M, N) = target, source
    attentions = ((m, n, M, N), (m, n, N, M), (n, m, M, N), (n, m, N, M))  # tokens and width: target's, source's
    parameters, kept = 4 * n * n + 5 * n, 0
    for k, d, t, e in attentions:
        i = max(_RAW_INNER, (d + e) // 2) // _RAW_HEADS * _RAW_HEADS
        parameters += 2 * i * (d + e) + 3 * i + 3 * d
        kept += 2 * i * (k + t) + 2 * k * d + 2 * k + 3 * _RAW_HEADS * k * t
    graph = kept + 8 * m * n + 2 * m + 4 * n * n
    return _Numbers(
        factors=M * N,
        adapter=_RAW_LAYERS * parameters,
        graph=_RAW_LAYERS * graph + 3 * m * n,
        exchanged=2 * m * n,
    )


def _anchored(target: tuple[int, int], source: tuple[int, int], rank: int, *, projected: bool) -> _Numbers:
    """Exchanged: the products that it needs with the source's factors, and as much again for the gradient."""
    (m, n), (M, N) = target, source
    return _Numbers(
        factors=rank * (m + n if projected else M + N),
        adapter=2 * rank * n,
        graph=_GRAPH * rank * (m + n),
        exchanged=2 * rank * (m + n) + 2 * m,
    )


def _is_projected(pairing: Pairing) -> bool:
    """Whether the source's factors are first projected to the target's width."""
    return pairing.method == "anchored" and pairing.basis is not None


def _maps(pairing: Pairing) -> int:
    """Numbers kept for the maps that `anchored` makes between units, one an axis."""
    if pairing.method != "anchored":
        return 0
    made: dict[str, int] = {}
    for pair in pairing.pairs:
        name = pair.inp if pair.form == "embedding" else pair.out
        axis = pairing.axes.get(name or "")
        if pair.rank is not None and name is not None and axis is not None and not axis.anchored:
            made[name] = _MAP * _map_entries(axis, projected=_is_projected(pairing))
    return sum(made.values())


def _map_entries(axis: AxisPair, *, projected: bool) -> int:
    """Of a map between the units of an axis, or its heads; a projection leaves no more units than the target has."""
    source, target = axis.heads or (axis.shared_size if projected else axis.source_size, axis.target_size)
    return source * target
