"""The Low-rank Parametric Knowledge Adapter `lpka` (MergeNet, section 3): attention between low-rank factors.

Both weights are re-encoded, W ≈ B A. The rows of A and the columns of B are tokens. In stacked knowledge-transfer
layers the target's tokens are the queries, the source's tokens the keys and values. No axis needs the same meaning in
both models.

Equation: A_s ← M({A_s, A_l}) every T_cycle steps. Departures from the paper: B_s is transferred as well as A_s; a gate
that starts at zero and the restored row scale are on by default (`gated: false` is the paper's form); the target's
weight is changed by B' A' − B A, so that what the truncated factors leave out is kept.

Shape suffixes: m × n the target's weight, M × N the source's, r rank, k tokens (2r), w token width, p pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mergenet_core.pairing.result import WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.axis_maps import RowUpdate
from mergenet_core.transfer.methods.method import Factors, MethodContext
from mergenet_core.transfer.reencode import factorize, refactorize, source_factors
from mergenet_core.transfer.shards.exchange import batched_sums
from mergenet_core.transfer.views import WeightView


class Linears(nn.Module):
    """One linear map for each pair, applied together."""

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
    """One layer norm for each pair, applied together."""

    def __init__(self, pairs: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(pairs, 1, width))
        self.bias = nn.Parameter(torch.zeros(pairs, 1, width))

    def forward(self, X_pkw: Tensor) -> Tensor:
        """Normalise rows to mean 0 and variance 1, then scale and shift. Shapes: (p, k, w) → (p, k, w)."""
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
        """The target tokens after attention to the source tokens. Shapes: (p, k, w), (p, k, w) → (p, k, w).

        Equation: T ← LN(T + softmax(T W_q (S W_k)ᵀ / √(w/heads)) S W_v W_o); T ← LN(T + FFN(T)).
        """
        query, key, value = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, tokens in ((self.query, target_pkw), (self.key, source_pkw), (self.value, source_pkw))
        )
        context = nn.functional.scaled_dot_product_attention(query, key, value)
        attended_pkw: Tensor = self.attention_norm(target_pkw + self.out(context.transpose(1, 2).flatten(2)))
        result: Tensor = self.norm(attended_pkw + self.down(nn.functional.gelu(self.up(attended_pkw))))
        return result


class Adapter(nn.Module):
    """M for pairs of equal shapes: {A_s, B_s, A_l, B_l} → {A_s', B_s'}. Each pair has its own parameters."""

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
        """The target's new factors B_s'ᵀ and A_s'.

        Shapes: (p, r, m), (p, r, n), (p, r, M), (p, r, N) → (p, r, m), (p, r, n).

        Equation: T = [A_s; B_sᵀ], S = [A_l; B_lᵀ]; T ← KTL(T, S), `layers` times; [A_s'; B_s'ᵀ] = T. Gated: tokens are
        RMS-normalised, A' = A + tanh(g)·rms(A)·rmsnorm(T) with g₀ = 0, and rows of A (columns of B) keep their size.
        """
        scale = rms_normalised if self.gated else _identity
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
    """The adapter between a target's weights and a source's, as published.

    It learns in one of two ways (`update`): from the loss's gradient, or as a hypernetwork from the target's own step.
    Pairs of equal shapes share one stack of parameters, named after the first of them.
    """

    start: Iterable[RowUpdate] = ()

    def __init__(self, context: MethodContext) -> None:
        self._pairs = context.pairing.pairs
        self.factors: dict[str, Tensor] = {}
        self._update = context.spec.update
        self._views: dict[str, WeightView] = {}
        by_shape: dict[tuple[int, ...], list[str]] = {}
        with torch.random.fork_rng(devices=[]):  # the target has the same random numbers as the control
            torch.default_generator.manual_seed(context.seed)
            for pair in self._pairs:
                assert pair.rank is not None
                view = WeightView(context.target[pair.target], pair.form)
                like = view.shard.local().flat
                B_Mr, A_rN = source_factors(context.source, pair, like)
                self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = B_Mr, A_rN
                # the target's own factor A, from which the next transfer's is found
                self.factors[f"{pair.target}.own"] = factorize(view, pair.rank)[1]
                self._views[pair.target] = view
                by_shape.setdefault((*view.shape, len(B_Mr), A_rN.shape[1], pair.rank), []).append(pair.target)
            self.adapters = {
                tuple(names): Adapter(len(names), (m, n), (M, N), context.spec).to(like)
                for (m, n, M, N, _), names in by_shape.items()
            }
        self.parameters = {
            f"{names[0]}.{name}": value
            for names, adapter in self.adapters.items()
            for name, value in adapter.named_parameters()
        }
        self._outputs: dict[str, Factors] = {}
        self._products_at_write: dict[str, Factors] = {}

    def set_source_weights(self, source: Mapping[str, Tensor]) -> None:
        """Go on with another state of the source's weights."""
        for pair in self._pairs:
            like = self._views[pair.target].shard.local().flat
            self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = source_factors(source, pair, like)

    def set_source_factors(self, factors: Callable[[WeightPair], Factors]) -> None:
        """Go on with the current factors of a source that is still learning."""
        for pair in self._pairs:
            self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = factors(pair)

    def write(self) -> None:
        """One transfer: W ← W + B' A' − B A. The graph of B' and A' is kept."""
        self._outputs = {}
        self._products_at_write = {}
        encoded = self._encode_target()
        for names, adapter in self.adapters.items():
            own = [encoded[name] for name in names]
            new_B_prm, new_A_prn = adapter(
                torch.stack([B_mr.T for B_mr, _ in own]),
                torch.stack([A_rn for _, A_rn in own]),
                torch.stack([self.factors[f"{name}.B"].T for name in names]),
                torch.stack([self.factors[f"{name}.A"] for name in names]),
            )
            for name, (B_mr, A_rn), new_B_rm, new_A_rn in zip(names, own, new_B_prm, new_A_prn, strict=True):
                view, new_B_mr = self._views[name], new_B_rm.T
                self._outputs[name] = (new_B_mr, new_A_rn)
                view.add_(torch.cat([new_B_mr.detach(), -B_mr], dim=1), torch.cat([new_A_rn.detach(), A_rn]))
        if self._update == "hypernetwork":
            self._products_at_write = self._output_products(of_gradient=False)

    def backward(self) -> None:
        """`update: gradient`: with the loss's gradient G at W', B' receives G A'ᵀ and A' receives B'ᵀ G.

        Departs from the paper: the target's factors are constants here, computed anew from its weight at each transfer,
        so the gradient of the weight itself stays G.
        """
        if self._update != "gradient":
            return
        products = self._output_products(of_gradient=True)
        self._learn([product for factors in products.values() for product in factors])

    def after_step(self) -> None:
        """`update: hypernetwork`: as `backward`, with the change that the target's step made, W' − W_after, as G."""
        if self._update != "hypernetwork":
            return
        products = self._output_products(of_gradient=False)
        self._learn(
            [
                at_write - after
                for name in products
                for at_write, after in zip(self._products_at_write[name], products[name], strict=True)
            ]
        )

    def _encode_target(self) -> dict[str, Factors]:
        """The factors of the target's weights as they are now."""
        earlier = {name: self.factors[f"{name}.own"] for name in self._views}
        encoded = dict(zip(self._views, refactorize(self._views.values(), earlier.values()), strict=True))
        for name, (_, A_rn) in encoded.items():
            self.factors[f"{name}.own"] = A_rn
        return encoded

    def _output_products(self, *, of_gradient: bool) -> dict[str, Factors]:
        """W A'ᵀ and B'ᵀ W of every weight W, or of its gradient."""
        with batched_sums():
            products = {}
            for name, (new_B_mr, new_A_rn) in self._outputs.items():
                view, A_nr, B_mr = self._views[name], new_A_rn.detach().T, new_B_mr.detach()
                if of_gradient:
                    products[name] = view.grad_left(A_nr), view.grad_right(B_mr)
                else:
                    products[name] = view.left(A_nr), view.right(B_mr)
        return products

    def _learn(self, output_gradients: list[Tensor]) -> None:
        outputs = [factor for factors in self._outputs.values() for factor in factors]
        gradients = torch.autograd.grad(outputs, list(self.parameters.values()), output_gradients, allow_unused=True)
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self._outputs, self._products_at_write = {}, {}


def _gated(factor: Tensor, attended: Tensor, gate: Tensor) -> Tensor:
    """Add the attended tokens through the gate, at the rows' own scale."""
    size = rms(factor)
    moved = factor + torch.tanh(gate) * size * rms_normalised(attended)
    return moved * (size / rms(moved))


def _identity(tokens: Tensor) -> Tensor:
    return tokens


def rms(X_pkd: Tensor) -> Tensor:
    """The root mean square of each row, at least 1e-6. Shapes: (p, k, d) → (p, k, 1)."""
    sizes: Tensor = torch.linalg.vector_norm(X_pkd, dim=-1, keepdim=True)
    return (sizes / math.sqrt(X_pkd.shape[-1])).clamp(min=1e-6)


def rms_normalised(X_pkd: Tensor) -> Tensor:
    """Rows of root mean square 1. Shapes: (p, k, d) → (p, k, d)."""
    return X_pkd / rms(X_pkd)
