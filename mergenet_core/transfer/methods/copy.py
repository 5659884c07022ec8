"""The naive baseline: the largest rows and columns of every source weight, each weight for itself, no map carried."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mergenet_core.jobs.pairs import Pairing
from mergenet_core.transfer.maps import as_oip, place_, selection


def copied(source: Mapping[str, Tensor], target: Mapping[str, Tensor], pairing: Pairing) -> dict[str, Tensor]:
    """The target's paired matrices with the source's rows and columns of the largest norm; vectors stay as they are."""
    written = {}
    for pair in pairing.pairs:
        if pair.rank is None:
            continue
        result = target[pair.target].detach().clone(memory_format=torch.contiguous_format)
        W_oip, result_oip = as_oip(source[pair.source].detach().to(result), pair.form), as_oip(result, pair.form)
        rows = selection(W_oip.flatten(1).norm(dim=1), result_oip.shape[0])
        columns = selection(W_oip.transpose(0, 1).flatten(1).norm(dim=1), result_oip.shape[1])
        place_(result_oip, columns.apply(rows.apply(W_oip, 0), 1), rows, columns)
        written[pair.target] = result
    return written
