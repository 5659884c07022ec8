"""A weight as a knowledge pack stores it: as the factors of its best approximation of a rank, or whole.

Shape suffixes: m rows, n columns, r rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from mergenet_core.model_files.knowledge_pack import PackDtype, as_matrix
from mergenet_core.transfer.reencode import factorize
from mergenet_core.transfer.views import view_of

StoredTensors: TypeAlias = tuple[Tensor, ...]
"""A weight's factors B and A (as int8 with their scales as a third tensor), or the weight alone."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.float16}
"""The precision of what is not stored as int8."""
_INT8_MOST = 127


def to_stored(W: Tensor, rank: int, dtype: PackDtype) -> StoredTensors:
    """A weight as a pack stores it: B A of rank min(r, m, n), or whole where that takes no more numbers.

    Computed on one thread of the CPU, so that the same weight always gives the same bits.
    """
    if W.ndim < 2 or not W.is_floating_point():
        return (own_copy(W),)
    m, n = as_matrix(tuple(W.shape))
    if rank * (m + n) >= m * n:
        return (own_copy(W.to(_DTYPES[dtype])),)
    with _one_thread():
        B_mr, A_rn = factorize(view_of(W.reshape(m, n).contiguous()), rank)
    if dtype == "int8":
        scales_2r = torch.stack([B_mr.abs().amax(0), A_rn.abs().amax(1)]).clamp(min=1e-30) / _INT8_MOST
        rounded = (B_mr / scales_2r[0]).round(), (A_rn / scales_2r[1][:, None]).round()
        return own_copy(rounded[0].to(torch.int8)), own_copy(rounded[1].to(torch.int8)), scales_2r
    return own_copy(B_mr.to(_DTYPES[dtype])), own_copy(A_rn.to(_DTYPES[dtype]))


def compose(tensors: StoredTensors, shape: tuple[int, ...]) -> Tensor:
    """The weight that is stored, W = B A, in single precision."""
    if len(tensors) == 1:
        return tensors[0].float() if tensors[0].is_floating_point() else tensors[0]
    B_mr, A_rn = unscaled_factors(tensors)
    with _one_thread():
        return (B_mr @ A_rn).view(shape)


def unscaled_factors(tensors: StoredTensors) -> tuple[Tensor, Tensor]:
    """B and A in single precision."""
    B_mr, A_rn = tensors[0].float(), tensors[1].float()
    if len(tensors) == 2:
        return B_mr, A_rn
    return B_mr * tensors[2][0], A_rn * tensors[2][1][:, None]


def own_copy(X: Tensor) -> Tensor:
    """A contiguous copy in memory of torch's own: alignment and layout decide the last bits of a product."""
    return X.clone(memory_format=torch.contiguous_format)


def energy_kept(W: Tensor, tensors: StoredTensors) -> float:
    """The share of a weight's energy that is stored, 1 − ‖W − B A‖² / ‖W‖², after rounding to the stored precision."""
    if not W.is_floating_point() or not W.any():
        return 1.0
    lost = (W - compose(tensors, tuple(W.shape))).double().square().sum() / W.double().square().sum()
    return 1.0 - float(lost)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
