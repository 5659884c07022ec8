"""The anchored operator: target units re-made as mixtures of the source's, by attention along axes that mean the same.

Each transfer walks through the target in the order of its data. Where an axis is first written, attention between the
target's units and the source's makes its map P; from there the map is carried: the next weight's source is expressed
in target units before it is attended to. One map serves the whole residual stream; attention heads move whole.

Shape suffixes: t target units, l source units, d shared coordinates of both, o output and i input units, p kernel
positions, v vocabulary rows, r rank; ^ (hat) RMS-normalised rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mergenet_core.jobs.anatomy import BASES
from mergenet_core.jobs.pairs import Pairing, WeightPair
from mergenet_core.jobs.spec import TransferSpec
from mergenet_core.transfer.maps import anchored_map, as_oip
from mergenet_core.transfer.methods.project import projected
from mergenet_core.transfer.reencode import factorize
from mergenet_core.transfer.views import WeightView

TEMPERATURE = 16.0
"""τ: at 4 every row collapses onto the mean, 8 is fragile."""
SINKHORN_STEPS = 5


def attention_map(X_td: Tensor, Y_ld: Tensor, Wq_dd: Tensor, Wk_dd: Tensor, heads: tuple[int, int] | None) -> Tensor:
    """How each target unit is made of source units, every source unit being shared out.

    Equation: P = softmax_row(Sinkhorn₅(Z)), Z = τ (X̂ W_q)(Ŷ W_k)ᵀ / d. With heads, a unit is a head's rows together.
    """
    queries, keys = rms_normalised(X_td) @ Wq_dd, rms_normalised(Y_ld) @ Wk_dd
    if heads is not None:
        queries, keys = queries.reshape(heads[0], -1), keys.reshape(heads[1], -1)
    Z_tl = TEMPERATURE * queries @ keys.T / queries.shape[1]
    for _ in range(SINKHORN_STEPS):
        Z_tl = Z_tl - Z_tl.logsumexp(dim=1, keepdim=True)
        Z_tl = Z_tl - Z_tl.logsumexp(dim=0, keepdim=True)
    P_tl = Z_tl.softmax(dim=1)
    if heads is not None:
        width = X_td.shape[0] // heads[0]
        P_tl = torch.kron(P_tl, torch.eye(width, dtype=P_tl.dtype, device=P_tl.device))
    return P_tl


def mixed(X_td: Tensor, PY_td: Tensor, gate: Tensor) -> Tensor:
    """The target's units moved towards what the source makes of them, each of its own size still.

    Equation: X' = X + tanh(g)(rms(X)·M − X) with M = rmsnorm(P(Ŷ + Ŷ W_v)), then rms(X') ← rms(X), by rows.
    """
    size_t1 = rms(X_td)
    moved_td = X_td + torch.tanh(gate) * (size_t1 * rms_normalised(PY_td) - X_td)
    return moved_td * (size_t1 / rms(moved_td))


def rms(X_td: Tensor) -> Tensor:
    """The root mean square of each row."""
    return (X_td.square().mean(dim=1, keepdim=True) + 1e-12).sqrt()


def rms_normalised(X_td: Tensor) -> Tensor:
    """Rows of root mean square 1."""
    return X_td / rms(X_td)


class Anchored:
    """Learned attention maps between a target's units and a frozen source's, re-made at every transfer."""

    def __init__(
        self,
        source: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        pairing: Pairing,
        spec: TransferSpec,
        seed: int,
    ) -> None:
        self._pairing = pairing
        self._pairs = [pair for pair in pairing.pairs if pair.rank is not None]
        self._views = {pair.target: WeightView(target[pair.target], pair.form) for pair in self._pairs}
        # a residual stream starts from the projection, and its source speaks the target's coordinates from then on
        self.start = projected(source, target, pairing) if pairing.basis is not None else {}
        self._projected = frozenset(self.start)
        self.factors: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for pair in self._pairs:
            weight = self.start.get(pair.target, source[pair.source].detach().to(target[pair.target]))
            assert pair.rank is not None
            self._take_factors(pair, weight, pair.rank)
            self._add_parameters(pair, math.atanh(spec.gate))

    def _take_factors(self, pair: WeightPair, weight: Tensor, rank: int) -> None:
        B_or, A_ri = factorize(WeightView(weight, pair.form), rank)
        if pair.form == "embedding":  # its rows are shared, so B is the coordinates and only the width is mapped
            Q_vr, R_rr = torch.linalg.qr(B_or)
            assert pair.out is not None
            rows = anchored_map(self._pairing.axes[pair.out])
            padded_vr = Q_vr.new_zeros((self._views[pair.target].shape[0], Q_vr.shape[1]))
            padded_vr[rows.cover_t] = rows.apply(Q_vr, 0)
            self.factors[f"{pair.target}.B"] = padded_vr
            self.factors[f"{pair.target}.A"] = R_rr @ A_ri
        else:
            self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = B_or, A_ri

    def _add_parameters(self, pair: WeightPair, gate: float) -> None:
        like = self._views[pair.target].weight
        width = (
            self.factors[f"{pair.target}.A"].shape[0] if pair.form == "embedding" else self._views[pair.target].shape[1]
        )
        axis = pair.inp if pair.form == "embedding" else pair.out
        assert axis is not None
        if self._makes_map(pair) and f"{axis}.query" not in self.parameters:
            for name in ("query", "key"):
                self.parameters[f"{axis}.{name}"] = nn.Parameter(torch.eye(width).to(like))
        self.parameters[f"{pair.target}.value"] = nn.Parameter(torch.zeros(width, width).to(like))
        self.parameters[f"{pair.target}.gate"] = nn.Parameter(torch.tensor(gate).to(like))

    def _makes_map(self, pair: WeightPair) -> bool:
        """Whether the pair's unit axis gets a map of its own when it is the first to meet it."""
        axis = pair.inp if pair.form == "embedding" else pair.out
        assert axis is not None
        if axis.startswith("values."):  # heads move as they do for queries and keys
            return f"queries.{axis.rpartition('.')[2]}.query" not in self.parameters
        if axis == "stream":
            return pair.role in BASES
        return not self._pairing.axes[axis].anchored

    def write(self) -> None:
        """One transfer: W ← X', the graph kept for `backward`."""
        maps: dict[str, Tensor] = {}
        self._tokens = {pair.target: self._target_tokens(pair).requires_grad_() for pair in self._pairs}
        self._moved = {}
        for pair in self._pairs:
            X_td = self._tokens[pair.target]
            Y_ld = self._source_tokens(pair, maps)
            P_tl = self._map(pair, X_td, Y_ld, maps)
            Yhat_ld = rms_normalised(Y_ld)
            M_ld = Yhat_ld + Yhat_ld @ self.parameters[f"{pair.target}.value"]
            PY_td = M_ld if P_tl is None else P_tl @ M_ld
            self._moved[pair.target] = mixed(X_td, PY_td, self.parameters[f"{pair.target}.gate"])
        for pair in self._pairs:
            delta_td = (self._moved[pair.target] - self._tokens[pair.target]).detach()
            view = self._views[pair.target]
            if pair.form == "embedding":
                view.add_(self.factors[f"{pair.target}.B"], delta_td.T)
            else:
                view.write_(self._moved[pair.target].detach())

    def backward(self) -> None:
        """Take the loss's gradient at X' through the operator, to the target's weights and to the adapter."""
        gradients = []
        for pair in self._pairs:
            view = self._views[pair.target]
            coordinates = pair.form == "embedding"
            gradients.append(view.grad_right(self.factors[f"{pair.target}.B"]).T if coordinates else view.gradient())
        inputs = [*self._tokens.values(), *self.parameters.values()]
        found = torch.autograd.grad(list(self._moved.values()), inputs, gradients, allow_unused=True)
        for pair, G_td, at_tokens in zip(self._pairs, gradients, found, strict=False):
            view = self._views[pair.target]
            if pair.form == "embedding":
                view.replace_gradient_(view.gradient() + self.factors[f"{pair.target}.B"] @ (at_tokens - G_td).T)
            else:
                view.replace_gradient_(at_tokens)
        for parameter, gradient in zip(self.parameters.values(), found[len(self._pairs) :], strict=True):
            parameter.grad = gradient
        self._tokens, self._moved = {}, {}

    def after_step(self) -> None:
        """Nothing: all that the adapter learns from has come with the loss's gradient."""

    def _target_tokens(self, pair: WeightPair) -> Tensor:
        view = self._views[pair.target]
        if pair.form == "embedding":
            return view.right(self.factors[f"{pair.target}.B"]).T.contiguous()
        return view.matrix().clone()

    def _source_tokens(self, pair: WeightPair, maps: Mapping[str, Tensor]) -> Tensor:
        """The source's units, of the re-encoded B A, in coordinates of the target."""
        if pair.form == "embedding":
            return self.factors[f"{pair.target}.A"].T
        Y = self.factors[f"{pair.target}.B"] @ self.factors[f"{pair.target}.A"]
        if pair.inp is not None and pair.inp in maps:
            Y_oip = as_oip(Y.view(pair.source_shape) if pair.target not in self._projected else Y, pair.form)
            Y = torch.einsum("oip,ti->otp", Y_oip, maps[pair.inp]).flatten(1)
        assert pair.out is not None
        out = self._pairing.axes[pair.out]
        return anchored_map(out).apply(Y, 0) if out.anchored and pair.target not in self._projected else Y

    def _map(self, pair: WeightPair, X_td: Tensor, Y_ld: Tensor, maps: dict[str, Tensor]) -> Tensor | None:
        axis = pair.inp if pair.form == "embedding" else pair.out
        assert axis is not None
        if axis.startswith("values."):
            maps[axis] = maps[f"queries.{axis.rpartition('.')[2]}"]
        if axis not in maps and f"{axis}.query" in self.parameters:
            heads = self._pairing.axes[axis].heads
            heads = heads and (heads[1], heads[1])
            query, key = self.parameters[f"{axis}.query"], self.parameters[f"{axis}.key"]
            maps[axis] = attention_map(X_td, Y_ld, query, key, heads)
        return maps.get(axis)
