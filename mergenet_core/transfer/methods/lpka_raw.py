"""The adapter of the paper's released code, `lpka-raw`: attention between the rows and columns of whole weights.

It exists for comparison with `lpka`. Unlike the paper's equations it has no re-encoding; there is no gate, and the
scale is not restored: the last LayerNorm writes rows of root mean square 1, which does no harm only where a BatchNorm
follows. It reads and writes whole weights on every process.

Shape suffixes: m × n the target's weight, M × N the source's; k tokens of width d that attend, e the attended width,
i the attention's inner width, h its heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mergenet_core.architectures.axes import matrix_shape
from mergenet_core.pairing.result import WeightPair
from mergenet_core.transfer.axis_maps import RowUpdate
from mergenet_core.transfer.methods.method import Factors, MethodContext
from mergenet_core.transfer.shards import TensorShard, gather_whole

LAYERS, HEADS = 2, 8
INNER_LEAST = 128
"""The narrowest inner width of an attention."""
EPSILON = 1e-12
SCORE_DROPOUT, OUTPUT_DROPOUT = 0.1, 0.2


def inner_width(width: int, source_width: int) -> int:
    """The inner width of an attention: the mean of both sides' widths, at least 128, a multiple of its heads."""
    return max(INNER_LEAST, (width + source_width) // 2) // HEADS * HEADS


class SpectralLinear(nn.Module):
    """A linear layer whose matrix is divided by its largest singular value, tracked by one power step per forward."""

    left: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("left", nn.functional.normalize(torch.randn(outputs), dim=0))

    def forward(self, X_kd: Tensor) -> Tensor:
        """The layer's output. Shapes: (k, inputs) → (k, outputs).

        Equation: Y = X (W/σ)ᵀ + b, σ = uᵀ W v, after v ← Wᵀu/‖·‖ and u ← W v/‖·‖.
        """
        with torch.no_grad():
            right = nn.functional.normalize(self.weight.T @ self.left, dim=0)
            left = nn.functional.normalize(self.weight @ right, dim=0)
            self.left.copy_(left)
        sigma = left @ self.weight @ right
        return nn.functional.linear(X_kd, self.weight / sigma, self.bias)


class Attention(nn.Module):
    """Attention with the target's tokens as queries, the source's as keys and values; a residual and a LayerNorm."""

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        inner = inner_width(width, source_width)
        self.query, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.key, self.value = nn.Linear(source_width, inner), nn.Linear(source_width, inner)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.score_dropout, self.output_dropout = nn.Dropout(SCORE_DROPOUT), nn.Dropout(OUTPUT_DROPOUT)

    def forward(self, target_kd: Tensor, source_ke: Tensor) -> Tensor:
        """The target's tokens after attention. Shapes: (k, d), (k of the source, e) → (k, d).

        Equation: LN(T + softmax(T W_q (S W_k)ᵀ / √(i/h)) S W_v W_o), with dropout on the scores and on the output.
        """
        query, key, value = (
            tokens.unflatten(1, (HEADS, -1)).transpose(0, 1)
            for tokens in (self.query(target_kd), self.key(source_ke), self.value(source_ke))
        )
        scores = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(query.shape[2]), dim=2)
        context = (self.score_dropout(scores) @ value).transpose(0, 1).flatten(1)
        attended: Tensor = self.norm(target_kd + self.output_dropout(self.out(context)))
        return attended


class RawLayer(nn.Module):
    """A knowledge-transfer layer: the target's rows and columns each attend to the source's rows and columns."""

    def __init__(self, target: tuple[int, int], source: tuple[int, int]) -> None:
        super().__init__()
        (m, n), (M, N) = target, source
        self.rows_rows, self.rows_columns = Attention(n, N), Attention(n, M)
        self.columns_rows, self.columns_columns = Attention(m, N), Attention(m, M)
        self.up, self.down = SpectralLinear(n, 2 * n), SpectralLinear(2 * n, n)
        self.norm = nn.LayerNorm(n, eps=EPSILON)
        self.dropout = nn.Dropout(OUTPUT_DROPOUT)

    def forward(self, W_mn: Tensor, S_MN: Tensor) -> Tensor:
        """The target's weight after one layer. Shapes: (m, n), (M, N) → (m, n).

        Equation: H = the mean of the four attentions; W ← LN(H + FFN(H)), the feed-forward twice as wide, with GELU
        in its tanh form, and dropout on its output.
        """
        rows_mn = self.rows_rows(W_mn, S_MN) + self.rows_columns(W_mn, S_MN.T)
        columns_nm = self.columns_rows(W_mn.T, S_MN) + self.columns_columns(W_mn.T, S_MN.T)
        attended_mn = (rows_mn + columns_nm.T) / 4
        raised = nn.functional.gelu(self.up(attended_mn), approximate="tanh")
        result: Tensor = self.norm(attended_mn + self.dropout(self.down(raised)))
        return result


class RawAdapter(nn.Module):
    """Stacked layers between one weight of the target and one weight of the source."""

    def __init__(self, target: tuple[int, int], source: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RawLayer(target, source) for _ in range(LAYERS))

    def forward(self, W_mn: Tensor, S_MN: Tensor) -> Tensor:
        """The target's new weight. Shapes: (m, n), (M, N) → (m, n)."""
        for layer in self.layers:
            W_mn = layer(W_mn, S_MN)
        return W_mn


class LpkaRaw:
    """The released code's adapter over a target's paired weights, learning as a hypernetwork."""

    start: Iterable[RowUpdate] = ()

    def __init__(self, context: MethodContext) -> None:
        self._pairs, self._target = context.pairing.pairs, context.target
        self.factors: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self._sources: dict[str, Tensor] = {}
        self._adapters: dict[str, RawAdapter] = {}
        self.outputs: dict[str, Tensor] = {}
        """The last transfer's new weights with their graph, until the adapter has learned from them."""
        with torch.random.fork_rng(devices=[]):  # the target has the same random numbers as the control
            torch.default_generator.manual_seed(context.seed)
            for pair in self._pairs:
                like = self._target[pair.target].local().flat
                target_shape, source_shape = (
                    matrix_shape(shape, pair.form) for shape in (pair.target_shape, pair.source_shape)
                )
                self._sources[pair.target] = context.source[pair.source].detach().to(like).reshape(source_shape)
                adapter = self._adapters[pair.target] = RawAdapter(target_shape, source_shape).to(like)
                self.parameters |= {f"{pair.target}.{name}": value for name, value in adapter.named_parameters()}
                # the vectors of the power steps belong in a checkpoint as the parameters do
                self.factors |= {f"{pair.target}.{name}": value for name, value in adapter.named_buffers()}

    def set_source_weights(self, source: Mapping[str, Tensor]) -> None:
        """Go on with another state of the source's weights."""
        for pair in self._pairs:
            before = self._sources[pair.target]
            self._sources[pair.target] = source[pair.source].detach().to(before).reshape(before.shape)

    def set_source_factors(self, factors: Callable[[WeightPair], Factors]) -> None:
        """Go on with the current weights of a source that is still learning, at the rank of the pairing."""
        for pair in self._pairs:
            B_Mr, A_rN = factors(pair)
            self._sources[pair.target] = B_Mr @ A_rN

    def write(self) -> None:
        """One transfer: W ← M(W, W_source). The graph of the output is kept."""
        for pair in self._pairs:
            shard = self._target[pair.target]
            W_mn = gather_whole(shard).reshape(matrix_shape(pair.target_shape, pair.form))
            self.outputs[pair.target] = self._adapters[pair.target](W_mn, self._sources[pair.target])
            _load_(shard, self.outputs[pair.target].detach().reshape(-1))

    def backward(self) -> None:
        """Nothing: the adapter learns in `after_step`."""

    def after_step(self) -> None:
        """Learn with W' − W_after, the negative change that the target's step made, as the output's gradient."""
        pairs = [(output, gather_whole(self._target[name]).view(output.shape)) for name, output in self.outputs.items()]
        gradients = torch.autograd.grad(
            [output for output, _ in pairs],
            list(self.parameters.values()),
            [output.detach() - after for output, after in pairs],
            allow_unused=True,
        )
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.outputs = {}


def _load_(shard: TensorShard, entries: Tensor) -> None:
    """Replace a tensor by the given entries; each process takes its own."""
    with torch.no_grad():
        shard.load_(lambda start, stop: entries[start:stop])
