"""The adapter as the paper's released code has it: attention over raw rows and columns of whole weights.

Kept for comparison with `lpka`. No re-encoding, no gate, no scale restored: the last LayerNorm writes rows of RMS ≈ 1,
which only a following BatchNorm hides. It reads and writes whole weights on every process.

Shape suffixes: m × n the target's weight, M × N the source's, k tokens, d their width, e the width of what answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.pairing.result import Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.shards import Shard, whole_of

LAYERS, HEADS = 2, 8
CLIP_NORM = 50.0
"""Largest norm of the adapter's gradient."""


class SpectralLinear(nn.Module):
    """A linear layer whose matrix is divided by its largest singular value, followed by one power step a forward."""

    left: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("left", nn.functional.normalize(torch.randn(outputs), dim=0))

    def forward(self, X_kd: Tensor) -> Tensor:
        """Equation: Y = X (W/σ)ᵀ + b, σ = uᵀ W v; v ← Wᵀu/‖·‖, u ← W v/‖·‖ before."""
        with torch.no_grad():
            right = nn.functional.normalize(self.weight.T @ self.left, dim=0)
            left = nn.functional.normalize(self.weight @ right, dim=0)
            self.left.copy_(left)
        sigma = left @ self.weight @ right
        return nn.functional.linear(X_kd, self.weight / sigma, self.bias)


class Attention(nn.Module):
    """Tokens of the target ask, tokens of the source answer; with a residual and a LayerNorm."""

    def __init__(self, width: int, answering: int) -> None:
        super().__init__()
        # departs from the released code: where 8 heads do not divide a width, as many as do
        self.heads = math.gcd(width, HEADS)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(answering, width), nn.Linear(answering, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, target_kd: Tensor, source_ke: Tensor) -> Tensor:
        """Equation: LN(T + softmax(T W_q (S W_k)ᵀ / √(d/heads)) S W_v W_o)."""
        query, key, value = (
            tokens.unflatten(1, (self.heads, -1)).transpose(0, 1)
            for tokens in (self.query(target_kd), self.key(source_ke), self.value(source_ke))
        )
        answers = nn.functional.scaled_dot_product_attention(query, key, value)
        heard: Tensor = self.norm(target_kd + self.out(answers.transpose(0, 1).flatten(1)))
        return heard


class RawLayer(nn.Module):
    """A knowledge-transfer layer: the target's rows and columns each hear the source's rows and columns."""

    def __init__(self, target: tuple[int, int], source: tuple[int, int]) -> None:
        super().__init__()
        (m, n), (M, N) = target, source
        self.rows_rows, self.rows_columns = Attention(n, N), Attention(n, M)
        self.columns_rows, self.columns_columns = Attention(m, N), Attention(m, M)
        self.up, self.down = SpectralLinear(n, 2 * n), SpectralLinear(2 * n, n)
        self.norm = nn.LayerNorm(n)

    def forward(self, W_mn: Tensor, S_MN: Tensor) -> Tensor:
        """Equation: H = mean of the four attentions; W ← LN(H + FFN(H)), the feed-forward twice as wide, GELU."""
        rows_mn = self.rows_rows(W_mn, S_MN) + self.rows_columns(W_mn, S_MN.T)
        columns_nm = self.columns_rows(W_mn.T, S_MN) + self.columns_columns(W_mn.T, S_MN.T)
        heard_mn = (rows_mn + columns_nm.T) / 4
        result: Tensor = self.norm(heard_mn + self.down(nn.functional.gelu(self.up(heard_mn))))
        return result


class RawAdapter(nn.Module):
    """Stacked layers between one weight of the target and one of the source."""

    def __init__(self, target: tuple[int, int], source: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RawLayer(target, source) for _ in range(LAYERS))

    def forward(self, W_mn: Tensor, S_MN: Tensor) -> Tensor:
        """The target's new weight."""
        for layer in self.layers:
            W_mn = layer(W_mn, S_MN)
        return W_mn


class LpkaRaw:
    """The released code's adapter over a target's paired weights, learning as a hypernetwork."""

    def __init__(
        self,
        source: Mapping[str, Tensor],
        target: Mapping[str, Shard],
        pairing: Pairing,
        spec: TransferSpec,
        seed: int,
    ) -> None:
        self.start = None
        self._pairs, self._target = pairing.pairs, target
        self.factors: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self._sources: dict[str, Tensor] = {}
        self._adapters: dict[str, RawAdapter] = {}
        self._made: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):  # the target's own random numbers stay those of the control
            torch.default_generator.manual_seed(seed)
            for pair in pairing.pairs:
                like = target[pair.target].held().flat
                mine, theirs = (matrix_shape(shape, pair.form) for shape in (pair.target_shape, pair.source_shape))
                self._sources[pair.target] = source[pair.source].detach().to(like).reshape(theirs)
                adapter = self._adapters[pair.target] = RawAdapter(mine, theirs).to(like)
                self.parameters |= {f"{pair.target}.{name}": value for name, value in adapter.named_parameters()}
                # where the power steps have got to belongs to a checkpoint as the parameters do
                self.factors |= {f"{pair.target}.{name}": value for name, value in adapter.named_buffers()}

    def retake(self, source: Mapping[str, Tensor]) -> None:
        """Take another state of the source."""
        for pair in self._pairs:
            before = self._sources[pair.target]
            self._sources[pair.target] = source[pair.source].detach().to(before).reshape(before.shape)

    def refresh(self, factors: Callable[[WeightPair], tuple[Tensor, Tensor]]) -> None:
        """Take the weights of a source that has learned since, at the rank of the pairing."""
        for pair in self._pairs:
            B_Mr, A_rN = factors(pair)
            self._sources[pair.target] = B_Mr @ A_rN

    def write(self) -> None:
        """One transfer: W ← M(W, W_source), the graph of the output kept."""
        for pair in self._pairs:
            shard = self._target[pair.target]
            W_mn = whole_of(shard).reshape(matrix_shape(pair.target_shape, pair.form))
            made_mn = self._made[pair.target] = self._adapters[pair.target](W_mn, self._sources[pair.target])
            entries = made_mn.detach().reshape(-1)
            with torch.no_grad():
                shard.load_(lambda start, stop, entries=entries: entries[start:stop])  # type: ignore[misc]

    def backward(self) -> None:
        """Nothing: the adapter learns from what the target's step makes of its output."""

    def after_step(self) -> None:
        """The output's gradient is W' − W_after, the way that the target's step went, reversed."""
        pairs = [(made, whole_of(self._target[name]).view(made.shape)) for name, made in self._made.items()]
        found = torch.autograd.grad(
            [made for made, _ in pairs],
            list(self.parameters.values()),
            [made.detach() - after for made, after in pairs],
            allow_unused=True,
        )
        for parameter, gradient in zip(self.parameters.values(), found, strict=True):
            parameter.grad = gradient
        self._made = {}
