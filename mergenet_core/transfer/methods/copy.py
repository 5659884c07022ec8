"""The naive baseline: the largest rows and columns of every source weight, each weight for itself, no map carried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.pairing.result import Pairing
from mergenet_core.transfer.maps import Written, as_oip, selection, written


def copied(source: Mapping[str, Tensor], pairing: Pairing) -> Iterator[Written]:
    """The target's paired matrices with the source's rows and columns of the largest norm; vectors stay as they are."""
    for pair in pairing.pairs:
        if pair.rank is None:
            continue
        W_oip = as_oip(source[pair.source].detach().float(), pair.form)
        outputs, inputs = matrix_shape(pair.target_shape, pair.form)
        rows = selection(W_oip.flatten(1).norm(dim=1), outputs)
        columns = selection(W_oip.transpose(0, 1).flatten(1).norm(dim=1), inputs // W_oip.shape[2])
        yield written(pair, columns.apply(rows.apply(W_oip, 0), 1), rows, columns)
