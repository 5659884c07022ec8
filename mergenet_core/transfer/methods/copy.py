"""The naive baseline `copy`: each target matrix takes the source's largest rows and columns.

Rows and columns are chosen for each weight alone, so no map is shared between layers. Equation: W_target[:a, :b] ←
W_source[the a rows and the b columns of largest norm], in the source's order. It is not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.transfer.axis_maps import RowUpdate, as_oip, row_update, select_largest
from mergenet_core.transfer.methods.method import MethodContext


def copy_largest(context: MethodContext) -> Iterator[RowUpdate]:
    """The rows of the target's paired matrices that are replaced; vectors are left out."""
    for pair in context.pairing.pairs:
        if pair.rank is None:
            continue
        W_oip = as_oip(context.source[pair.source].detach().float(), pair.form)
        outputs, inputs = matrix_shape(pair.target_shape, pair.form)
        rows = select_largest(W_oip.flatten(1).norm(dim=1), outputs)
        columns = select_largest(W_oip.transpose(0, 1).flatten(1).norm(dim=1), inputs // W_oip.shape[2])
        yield row_update(pair, columns.apply(rows.apply(W_oip, 0), 1), rows, columns)
