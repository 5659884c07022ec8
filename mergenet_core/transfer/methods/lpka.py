"""The Low-rank Parametric Knowledge Adapter: attention from the target's factors to the source's (MergeNet, section 3).

Both weights are re-encoded, W ≈ B A. The rows of A and the columns of B are tokens; those of the target ask, those of
the source answer, through stacked knowledge-transfer layers. No axis has to mean the same in both models.

Shape suffixes: m × n the target's weight, M × N the source's, r rank, k tokens (2r), w token width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mergenet_core.jobs.pairs import Pairing, WeightPair
from mergenet_core.jobs.spec import TransferSpec
from mergenet_core.transfer.reencode import factorize, source_factors
from mergenet_core.transfer.shards import Shard
from mergenet_core.transfer.views import WeightView


class KnowledgeTransferLayer(nn.Module):
    """Attention from target tokens to source tokens, then a feed-forward; each with a residual and a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.attention_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, target_kw: Tensor, source_kw: Tensor) -> Tensor:
        """Target tokens with what the source's tokens say to them.

        Equation: T ← LN(T + softmax(T W_q (S W_k)ᵀ / √(w/heads)) S W_v W_o); T ← LN(T + FFN(T)).
        """
        query, key, value = (
            project(tokens).unflatten(1, (self.heads, -1)).transpose(0, 1)
            for project, tokens in ((self.query, target_kw), (self.key, source_kw), (self.value, source_kw))
        )
        answers = nn.functional.scaled_dot_product_attention(query, key, value)
        heard_kw: Tensor = self.attention_norm(target_kw + self.out(answers.transpose(0, 1).flatten(1)))
        result: Tensor = self.norm(heard_kw + self.down(nn.functional.gelu(self.up(heard_kw))))
        return result


class PairAdapter(nn.Module):
    """M for one pair of weights: {A_s, B_s, A_l, B_l} → {A_s', B_s'}."""

    def __init__(self, target: tuple[int, int], source: tuple[int, int], spec: TransferSpec) -> None:
        super().__init__()
        (m, n), (M, N) = target, source
        self.gated = spec.gated
        self.target_rows, self.target_columns = nn.Linear(n, spec.width), nn.Linear(m, spec.width)
        self.source_rows, self.source_columns = nn.Linear(N, spec.width), nn.Linear(M, spec.width)
        self.layers = nn.ModuleList(KnowledgeTransferLayer(spec.width, spec.heads) for _ in range(spec.layers))
        self.rows, self.columns = nn.Linear(spec.width, n), nn.Linear(spec.width, m)
        if spec.gated:
            self.row_gate, self.column_gate = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, B_mr: Tensor, A_rn: Tensor, B_Mr: Tensor, A_rN: Tensor) -> tuple[Tensor, Tensor]:
        """The target's new factors.

        Equation: T = [A_s; B_sᵀ], S = [A_l; B_lᵀ]; T ← KTL(T, S), `layers` times; [A_s'; B_s'ᵀ] = T. Gated: tokens are
        RMS-normalised, A' = A + tanh(g)·rms(A)·rmsnorm(T) with g₀ = 0, and rows of A (columns of B) keep their size.
        """
        scale = rms_normalised if self.gated else _as_it_is
        B_rm, B_rM = B_mr.T.contiguous(), B_Mr.T.contiguous()
        target_kw = torch.cat([self.target_rows(scale(A_rn)), self.target_columns(scale(B_rm))])
        source_kw = torch.cat([self.source_rows(scale(A_rN)), self.source_columns(scale(B_rM))])
        for layer in self.layers:
            target_kw = layer(target_kw, source_kw)
        rank = A_rn.shape[0]
        new_A_rn, new_B_rm = self.rows(target_kw[:rank]), self.columns(target_kw[rank:])
        if self.gated:
            new_A_rn = _gated(A_rn, new_A_rn, self.row_gate)
            new_B_rm = _gated(B_rm, new_B_rm, self.column_gate)
        return new_B_rm.T, new_A_rn


class Lpka:
    """The adapter between a target's weights and a frozen source's, as published, and its two ways to learn."""

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
        self.parameters: dict[str, nn.Parameter] = {}
        self._update = spec.update
        self._ranks: dict[str, int] = {}
        self._views: dict[str, WeightView] = {}
        self._adapters: dict[str, PairAdapter] = {}
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
                adapter = PairAdapter(mine.shape, (len(B_Mr), A_rN.shape[1]), spec).to(like)
                self._ranks[pair.target], self._views[pair.target], self._adapters[pair.target] = (
                    pair.rank,
                    mine,
                    adapter,
                )
                self.parameters |= {f"{pair.target}.{name}": value for name, value in adapter.named_parameters()}

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
        for name, view in self._views.items():
            B_mr, A_rn = factorize(view, self._ranks[name], self.factors[f"{name}.own"])
            self.factors[f"{name}.own"] = A_rn
            new_B_mr, new_A_rn = self._adapters[name](B_mr, A_rn, self.factors[f"{name}.B"], self.factors[f"{name}.A"])
            self._made[name] = (new_B_mr, new_A_rn)
            view.add_(torch.cat([new_B_mr.detach(), -B_mr], dim=1), torch.cat([new_A_rn.detach(), A_rn]))
            if self._update == "hypernetwork":
                self._written[name] = view.left(new_A_rn.detach().T), view.right(new_B_mr.detach())

    def backward(self) -> None:
        """`gradient`: with the loss's gradient G at W', B' receives G A'ᵀ and A' receives B'ᵀ G.

        Departs from the paper: the target's factors are constants here, re-made from its weight at each transfer, so
        that the weight's own gradient stays G.
        """
        if self._update != "gradient":
            return
        gradients = []
        for name, (new_B_mr, new_A_rn) in self._made.items():
            view = self._views[name]
            gradients += [view.grad_left(new_A_rn.detach().T), view.grad_right(new_B_mr.detach())]
        self._learn(gradients)

    def after_step(self) -> None:
        """`hypernetwork`: the output learns from where the target's own step led, (W' − W_after) in place of G."""
        if self._update != "hypernetwork":
            return
        gradients = []
        for name, (new_B_mr, new_A_rn) in self._made.items():
            view, (at_B_mr, at_A_rn) = self._views[name], self._written[name]
            gradients += [at_B_mr - view.left(new_A_rn.detach().T), at_A_rn - view.right(new_B_mr.detach())]
        self._learn(gradients)

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


def rms(X_kd: Tensor) -> Tensor:
    """The root mean square of each row, at least 1e-6."""
    sizes: Tensor = torch.linalg.vector_norm(X_kd, dim=1, keepdim=True)
    return (sizes / math.sqrt(X_kd.shape[1])).clamp(min=1e-6)


def rms_normalised(X_kd: Tensor) -> Tensor:
    """Rows of root mean square 1."""
    return X_kd / rms(X_kd)
