"""Shams of a source: weights that keep some of its statistics and none of its knowledge.

`shuffled` keeps every entry and loses the order; `spectrum` keeps a matrix's singular values as well, and has random
singular vectors. What a sham makes of a tensor depends on the tensor, its name and the seed alone.

Shape suffixes: m rows, n columns, k the smaller of both, r rank.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sham:
    """How weights lose their knowledge."""

    kind: Literal["shuffled", "spectrum"]
    seed: int

    def weight(self, W: Tensor, name: str) -> Tensor:
        """A weight without its knowledge; under `spectrum` a vector is shuffled."""
        W = W.detach()
        if self.kind == "spectrum" and W.is_floating_point() and _is_matrix(W):
            return with_random_vectors(W, name, self.seed)
        return shuffled(W, name, self.seed)

    def factors(self, B_mr: Tensor, A_rn: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The factors of a weight without its knowledge; both share its singular values evenly, before and after."""
        if self.kind == "shuffled":
            return shuffled(B_mr, f"{name} B", self.seed), shuffled(A_rn, f"{name} A", self.seed)
        roots_r = B_mr.norm(dim=0)
        U_mr, V_nr = (
            _orthonormal(rows, len(roots_r), f"{name} {side}", self.seed).to(B_mr)
            for rows, side in ((len(B_mr), "U"), (A_rn.shape[1], "V"))
        )
        return U_mr * roots_r, (V_nr * roots_r).T


class ShamWeights(Mapping[str, Tensor]):
    """A source's weights without its knowledge.

    A weight is changed when it is looked up, in the same way each time.
    """

    def __init__(self, weights: Mapping[str, Tensor], sham: Sham) -> None:
        self._weights, self._sham = weights, sham

    def __getitem__(self, name: str) -> Tensor:
        return self._sham.weight(self._weights[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def shuffled(W: Tensor, name: str, seed: int) -> Tensor:
    """A tensor with its entries in a random order that depends on the name and the seed alone."""
    order = torch.randperm(W.numel(), generator=_generator(name, seed))
    return W.reshape(-1)[order.to(W.device)].reshape(W.shape)


def with_random_vectors(W: Tensor, name: str, seed: int) -> Tensor:
    """A matrix with the singular values of another and random orthonormal singular vectors.

    A tensor of more than two axes is a matrix as in the re-encoding, out × in·k·k.
    Equation: W' = U diag(σ(W)) Vᵀ, with U and V the Q of a Gaussian matrix; σ² are the eigenvalues of WᵀW or W Wᵀ.
    """
    W_mn = W.reshape(_rows(W), -1).double().cpu()
    m, n = W_mn.shape
    gram_kk = W_mn.T @ W_mn if n <= m else W_mn @ W_mn.T
    sigma_k = torch.linalg.eigvalsh(gram_kk).clamp(min=0).sqrt()
    U_mk, V_nk = (_orthonormal(rows, min(m, n), f"{name} {side}", seed) for rows, side in ((m, "U"), (n, "V")))
    found: Tensor = (U_mk * sigma_k) @ V_nk.T
    return found.to(W).reshape(W.shape)


def _orthonormal(rows: int, columns: int, name: str, seed: int) -> Tensor:
    """Random orthonormal columns, in double precision."""
    Q: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=_generator(name, seed), dtype=torch.float64)).Q
    return Q


def _is_matrix(W: Tensor) -> bool:
    return W.ndim >= 2 and 1 < _rows(W) < W.numel()


def _rows(W: Tensor) -> int:
    """The rows of a tensor as a matrix; axes of one entry in front, as of positions, are no axes."""
    sizes = list(W.shape)
    while len(sizes) > 2 and sizes[0] == 1:
        sizes.pop(0)
    return sizes[0]


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
