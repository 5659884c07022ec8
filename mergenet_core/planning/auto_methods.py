"""What `transfer.method: auto` tries: the candidates that a pair of models allows."""

from __future__ import annotations

from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import TRIED, Pairing, pair
from mergenet_core.records.job import Candidate
from mergenet_core.spec.job import TransferSpec


def candidates(
    source: ModelInfo, target: ModelInfo, transfer: TransferSpec, first: Pairing
) -> dict[Candidate, Pairing]:
    """The candidates that a pair allows, each with its pairing; `first` is that of the preferred one.

    Left out are candidates that are refused, and those that would write the same weights as an earlier one of the same
    method.
    """
    assert first.kind != "named", "pairs given by name need a method given by name"
    found = {Candidate(method=first.method, include=transfer.include): first}
    for method, include in TRIED[first.kind]:
        if transfer.include not in ("all", include):
            continue
        try:
            pairing = pair(source, target, transfer.model_copy(update={"method": method, "include": include}))
        except PairingRefused:
            continue
        if (method, _written(pairing)) not in ((known.method, _written(other)) for known, other in found.items()):
            found[Candidate(method=method, include=include)] = pairing
    return found


def _written(pairing: Pairing) -> frozenset[str]:
    return frozenset(entry.target for entry in pairing.pairs)
