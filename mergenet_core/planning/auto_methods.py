"""What `transfer.method: auto` tries: the candidates that a pair of models allows."""

from __future__ import annotations

from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import TRIED, Pairing, pair
from mergenet_core.records.job import Candidate
from mergenet_core.spec.job import TransferSpec


def candidates(
    source: ModelInfo, target: ModelInfo, transfer: TransferSpec, *, may_fit: bool
) -> dict[Candidate, Pairing]:
    """The candidates that a pair allows, each with its pairing, the preferred one first.

    Left out are candidates that are refused, and those that would write the same weights as an earlier one of the same
    method. `may_fit` says whether the source can be run on unlabelled inputs, so that method `fit` is one of them.

    Raises: `PairingRefused` where no method is possible.
    """
    found: dict[Candidate, Pairing] = {}
    refused: PairingRefused | None = None
    try:
        first = pair(source, target, transfer)
    except PairingRefused as error:
        refused = error
    else:
        assert first.kind != "named", "pairs given by name need a method given by name"
        found[Candidate(method=first.method, include=transfer.include)] = first
        for method, include in TRIED[first.kind]:
            if transfer.include in ("all", include):
                _try(source, target, transfer.model_copy(update={"method": method, "include": include}), found)
    if may_fit and transfer.include in ("all", "no-head"):
        _try(source, target, transfer.model_copy(update={"method": "fit"}), found)
    if not found and refused is not None:
        raise refused
    return found


def _try(source: ModelInfo, target: ModelInfo, transfer: TransferSpec, found: dict[Candidate, Pairing]) -> None:
    """Add a candidate, unless it is refused or writes what an earlier one of the same method writes."""
    try:
        pairing = pair(source, target, transfer)
    except PairingRefused:
        return
    if (pairing.method, _written(pairing)) not in ((known.method, _written(other)) for known, other in found.items()):
        found[Candidate(method=pairing.method, include=transfer.include)] = pairing


def _written(pairing: Pairing) -> frozenset[str]:
    return frozenset(entry.target for entry in pairing.pairs)
