"""The rank of each pair's re-encoding."""

from __future__ import annotations

from mergenet_core.errors import PairingRefused
from mergenet_core.pairing.result import Pairing


def limit_rank(pairing: Pairing, rank: int | None, asked: int | None) -> Pairing:
    """The pairing with every pair's rank at most `rank`, at which the source is stored. Raises: `PairingRefused`."""
    if rank is None:
        return pairing
    if asked is not None and asked > rank:
        raise PairingRefused(
            f"transfer.rank {asked} is above the rank that the source is stored at, {rank}; use {rank} or less, leave "
            "it out, or take a pack of a higher rank"
        )
    pairs = tuple(
        pair if pair.rank is None else pair.model_copy(update={"rank": min(pair.rank, rank)}) for pair in pairing.pairs
    )
    return pairing.model_copy(update={"pairs": pairs, "rank": max(pair.rank or 0 for pair in pairs)})
