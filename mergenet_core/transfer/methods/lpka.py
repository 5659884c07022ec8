"""The Low-rank Parametric Knowledge Adapter: attention from the target's factors to the source's (MergeNet, section 3).

Both weights are re-encoded, W ≈ B A. The rows of A and the columns of B are tokens; those of the target ask, those of
the source answer, through stacked knowledge-transfer layers. No axis has to mean the same in both models.

Shape suffixes: m × n the target's weight, M × N the source's, r rank, k tokens (2r), w token width, p pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mergenet_core.pairing.result import Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.reencode import factorize, refactorize, source_factors
from mergenet_core.transfer.shards import Shard, together
from mergenet_core.transfer.views import WeightView


class Linears(nn.Module):
    """Linear maps, one a pair, applied as one."""

    def __init__(self, pairs: int, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(pairs, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(pairs, 1, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, X_pki: Tensor) -> Tensor:
        """X Wᵀ + b of each pair. Shapes: (p, k, inputs) → (p, k, outputs)."""
        if self.bias is None:
            return torch.bmm(X_pki, self.weight.mT)
        return torch.baddbmm(self.bias, X_pki, self.weight.mT)


class LayerNorms(nn.Module):
    """Layer norms, one a pair, applied as one."""

    def __init__(self, pairs: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(pairs, 1, width))
        self.bias = nn.Parameter(torch.zeros(pairs, 1, width))

    def forward(self, X_pkw: Tensor) -> Tensor:
        """Rows of mean 0 and variance 1, then scaled and shifted. Shapes: (p, k, w) → (p, k, w)."""
        return torch.addcmul(self.bias, nn.functional.layer_norm(X_pkw, X_pkw.shape[-1:]), self.weight)


class KnowledgeTransferLayer(nn.Module):
    """Attention from target tokens to source tokens, then a feed-forward; each with a residual and a LayerNorm."""

    def __init__(self, pairs: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linears(pairs, width, width, bias=False)
        self.key = Linears(pairs, width, width, bias=False)
        self.value = Linears(pairs, width, width, bias=False)
        self.out = Linears(pairs, width, width, bias=False)
        self.attention_norm = LayerNorms(pairs, width)
        self.up = Linears(pairs, width, 2 * width)
        self.down = Linears(pairs, 2 * width, width)
        self.norm = LayerNorms(pairs, width)

    def forward(self, target_pkw: Tensor, source_pkw: Tensor) -> Tensor:
        """Target tokens with what the source's tokens say to them.

        Equation: T ← LN(T + softmax(T W_q (S W_k)ᵀ / √(w/heads)) S W_v W_o); T ← LN(T + FFN(T)).
        """
        query, key, value = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, tokens in ((self.query, target_pkw), (self.key, source_pkw), (self.value, source_pkw))
        )
        answers = nn.functional.scaled_dot_product_attention(query, key, value)
        heard_pkw: Tensor = self.attention_norm(target_pkw + self.out(answers.transpose(1, 2).flatten(2)))
        result: Tensor = self.norm(heard_pkw + self.down(nn.functional.gelu(self.up(heard_pkw))))
        return result


class Adapter(nn.Module):
    """M for pairs of the same shapes: {A_s, B_s, A_l, B_l} → {A_s', B_s'}, each pair with parameters of its own."""

    def __init__(self, pairs: int, target: tuple[int, int], source: tuple[int, int], spec: TransferSpec) -> None:
        super().__init__()
        (m, n), (M, N), width = target, source, spec.width
        self.gated = spec.gated
        self.target_rows, self.target_columns = Linears(pairs, n, width), Linears(pairs, m, width)
        self.source_rows, self.source_columns = Linears(pairs, N, width), Linears(pairs, M, width)
        self.layers = nn.ModuleList(KnowledgeTransferLayer(pairs, width, spec.heads) for _ in range(spec.layers))
        self.rows, self.columns = Linears(pairs, width, n), Linears(pairs, width, m)
        if spec.gated:
            self.row_gate = nn.Parameter(torch.zeros(pairs, 1, 1))
            self.column_gate = nn.Parameter(torch.zeros(pairs, 1, 1))

    def forward(self, B_prm: Tensor, A_prn: Tensor, B_prM: Tensor, A_prN: Tensor) -> tuple[Tensor, Tensor]:
        """The target's new factors B_s'ᵀ and A_s', from the factors as rows.

        Equation: T = [A_s; B_sᵀ], S = [A_l; B_lᵀ]; T ← KTL(T, S), `layers` times; [A_s'; B_s'ᵀ] = T. Gated: tokens are
        RMS-normalised, A' = A + tanh(g)·rms(A)·rmsnorm(T) with g₀ = 0, and rows of A (columns of B) keep their size.
        """
        scale = rms_normalised if self.gated else _as_it_is
        target_pkw = torch.cat([self.target_rows(scale(A_prn)), self.target_columns(scale(B_prm))], dim=1)
        source_pkw = torch.cat([self.source_rows(scale(A_prN)), self.source_columns(scale(B_prM))], dim=1)
        for layer in self.layers:
            target_pkw = layer(target_pkw, source_pkw)
        rank = A_prn.shape[1]
        new_A_prn, new_B_prm = self.rows(target_pkw[:, :rank]), self.columns(target_pkw[:, rank:])
        if self.gated:
            new_A_prn = _gated(A_prn, new_A_prn, self.row_gate)
            new_B_prm = _gated(B_prm, new_B_prm, self.column_gate)
        return new_B_prm, new_A_prn


class Lpka:
    """The adapter between a target's weights and a source's, as published, and its two ways to learn.

    Pairs of the same shapes share a stack of parameters, in the pairing's order, by the name of the first.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        target: Mapping[str, Shard],
        pairing: Pairing,
        spec: TransferSpec,
        seed: int,
    ) -> None:
        self.start = None
        self._pairs = pairing.pairs
        self.factors: dict[str, Tensor] = {}
        self._update = spec.update
        self._ranks: dict[str, int] = {}
        self._views: dict[str, WeightView] = {}
        alike: dict[tuple[int, ...], list[str]] = {}
        with torch.random.fork_rng(devices=[]):  # the target's own random numbers stay those of the control
            torch.default_generator.manual_seed(seed)
            for pair in pairing.pairs:
                assert pair.rank is not None
                mine = WeightView(target[pair.target], pair.form)
                like = mine.shard.held().flat
                B_Mr, A_rN = source_factors(source, pair, like)
                self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = B_Mr, A_rN
                # the target's own factor, from which the next transfer's is found
                self.factors[f"{pair.target}.own"] = factorize(mine, pair.rank)[1]
                self._ranks[pair.target], self._views[pair.target] = pair.rank, mine
                alike.setdefault((*mine.shape, len(B_Mr), A_rN.shape[1], pair.rank), []).append(pair.target)
            self._adapters = {
                tuple(names): Adapter(len(names), (m, n), (M, N), spec).to(like)
                for (m, n, M, N, _), names in alike.items()
            }
        self.parameters = {
            f"{names[0]}.{name}": value
            for names, adapter in self._adapters.items()
            for name, value in adapter.named_parameters()
        }

    def retake(self, source: Mapping[str, Tensor]) -> None:
        """Take another state of the source."""
        for pair in self._pairs:
            like = self._views[pair.target].shard.held().flat
            self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = source_factors(source, pair, like)

    def refresh(self, factors: Callable[[WeightPair], tuple[Tensor, Tensor]]) -> None:
        """Take the factors of a source that has learned since."""
        for pair in self._pairs:
            self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = factors(pair)

    def write(self) -> None:
        """One transfer: W ← W + B' A' − B A, the graph of the factors kept."""
        self._made: dict[str, tuple[Tensor, Tensor]] = {}
        self._written: dict[str, tuple[Tensor, Tensor]] = {}
        encoded = self._encoded()
        for names, adapter in self._adapters.items():
            own = [encoded[name] for name in names]
            new_B_prm, new_A_prn = adapter(
                torch.stack([B_mr.T for B_mr, _ in own]),
                torch.stack([A_rn for _, A_rn in own]),
                torch.stack([self.factors[f"{name}.B"].T for name in names]),
                torch.stack([self.factors[f"{name}.A"] for name in names]),
            )
            for name, (B_mr, A_rn), new_B_rm, new_A_rn in zip(names, own, new_B_prm, new_A_prn, strict=True):
                view, new_B_mr = self._views[name], new_B_rm.T
                self._made[name] = (new_B_mr, new_A_rn)
                view.add_(torch.cat([new_B_mr.detach(), -B_mr], dim=1), torch.cat([new_A_rn.detach(), A_rn]))
        if self._update == "hypernetwork":
            self._written = self._products(of_gradient=False)

    def _encoded(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The target's factors as it is now."""
        near = {name: self.factors[f"{name}.own"] for name in self._views}
        found = dict(zip(self._views, refactorize(self._views.values(), near.values()), strict=True))
        for name, (_, A_rn) in found.items():
            self.factors[f"{name}.own"] = A_rn
        return found

    def _products(self, *, of_gradient: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """W A'ᵀ and B'ᵀ W of every weight, or of its gradient."""
        with together():
            found = {}
            for name, (new_B_mr, new_A_rn) in self._made.items():
                view, A_nr, B_mr = self._views[name], new_A_rn.detach().T, new_B_mr.detach()
                if of_gradient:
                    found[name] = view.grad_left(A_nr), view.grad_right(B_mr)
                else:
                    found[name] = view.left(A_nr), view.right(B_mr)
        return found

    def backward(self) -> None:
        """`gradient`: with the loss's gradient G at W', B' receives G A'ᵀ and A' receives B'ᵀ G.

        Departs from the paper: the target's factors are constants here, re-made from its weight at each transfer, so
        that the weight's own gradient stays G.
        """
        if self._update != "gradient":
            return
        self._learn([part for parts in self._products(of_gradient=True).values() for part in parts])

    def after_step(self) -> None:
        """`hypernetwork`: the output learns from where the target's own step led, (W' − W_after) in place of G."""
        if self._update != "hypernetwork":
            return
        now = self._products(of_gradient=False)
        self._learn([at - by_now for name in now for at, by_now in zip(self._written[name], now[name], strict=True)])

    def _learn(self, gradients: list[Tensor]) -> None:
        outputs = [factor for pair in self._made.values() for factor in pair]
        found = torch.autograd.grad(outputs, list(self.parameters.values()), gradients, allow_unused=True)
        for parameter, gradient in zip(self.parameters.values(), found, strict=True):
            parameter.grad = gradient
        self._made, self._written = {}, {}


def _gated(factor: Tensor, heard: Tensor, gate: Tensor) -> Tensor:
    size = rms(factor)
    moved = factor + torch.tanh(gate) * size * rms_normalised(heard)
    return moved * (size / rms(moved))


def _as_it_is(tokens: Tensor) -> Tensor:
    return tokens


def rms(X_pkd: Tensor) -> Tensor:
    """The root mean square of each row, at least 1e-6. Shapes: (p, k, d) → (p, k, 1)."""
    sizes: Tensor = torch.linalg.vector_norm(X_pkd, dim=-1, keepdim=True)
    return (sizes / math.sqrt(X_pkd.shape[-1])).clamp(min=1e-6)


def rms_normalised(X_pkd: Tensor) -> Tensor:
    """Rows of root mean square 1. Shapes: (p, k, d) → (p, k, d)."""
    return X_pkd / rms(X_pkd)
