"""The transfer cycle (MergeNet, section 3): when knowledge moves while the target trains.

Equation: at step t, the paired weights become M(target, source) if t mod T_cycle = 0; in between, the target learns
alone (self-learning). Departures from the paper: no transfer happens after the share `stop_at` of the steps, so that
the target can recover from the last one; training-free methods write once, before the first step. The target stays an
ordinary module, and the adapter M is not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from mergenet_core.architectures.axes import StoredSlice
from mergenet_core.pairing.result import Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.axis_maps import RowUpdate
from mergenet_core.transfer.methods import method_named
from mergenet_core.transfer.methods.method import Factors, Learned, LearnedMethod, MethodContext
from mergenet_core.transfer.reencode import factorize
from mergenet_core.transfer.sham import Sham, ShamWeights
from mergenet_core.transfer.shards import TensorShard
from mergenet_core.transfer.source_weights import SourceWeights
from mergenet_core.transfer.views import WeightView, view_of

ADAPTER_RATE, GATE_RATE = 1e-4, 1e-3
"""AdamW's highest learning rates; a cosine lowers them to zero over the transfers."""


@dataclass(frozen=True)
class TransferSource:
    """Where the knowledge comes from; with neither `live` nor `states`, from a frozen source."""

    weights: Mapping[str, Tensor]
    live: Mapping[str, TensorShard] | None = None
    """This process's part of a source that trains at the same time as the target."""
    states: Sequence[Mapping[str, Tensor]] = ()
    """Weights of an earlier training, oldest first; the transfers are divided evenly among them."""
    sham: Sham | None = None
    """For a sham: how every weight (of a live source, every pair of factors) loses its knowledge."""


class TransferState(TypedDict, total=False):
    """The state of a learned transfer in a checkpoint; empty for a training-free method."""

    adapter: dict[str, Tensor]
    optimizer: dict[str, Any]
    """As torch's optimizers give it."""


class Transfer:
    """Moves a source's knowledge into a target while it trains.

    The loop calls `start` once before the first step, and at every step `before` the forward pass, `after_backward`
    (gradients unscaled, not yet clipped) and `after_step` (the optimizer has stepped). A resumed run calls
    `load_state_dict` instead of `start`.

    `target` is this process's part of every tensor by name. `method` overrides the pairing's method.
    """

    def __init__(
        self,
        source: TransferSource,
        target: Mapping[str, TensorShard],
        pairing: Pairing,
        spec: TransferSpec,
        *,
        steps: int,
        seed: int,
        method: str | None = None,
    ) -> None:
        self.pairing = pairing
        self._spec = spec
        self._last_step = round(spec.stop_at * steps, 6)
        self._target = target
        # `source` itself is not kept: the weights of a frozen source can be freed
        self._live, self._states, self._sham = source.live, source.states, source.sham
        self._state_index = 0
        weights = self._named_weights(source.weights)
        self._live_weights = weights if source.live is not None else {}
        context = MethodContext(weights, target, pairing, spec, seed)
        chosen = method_named(method or pairing.method)
        self._method: LearnedMethod | None = None
        self._start: Iterable[RowUpdate]
        if isinstance(chosen, Learned):
            self._method = chosen.make(context)
            self._start = self._method.start
            self._clip_norm = chosen.clip_norm
            gates = [value for key, value in self._method.parameters.items() if key.endswith("gate")]
            others = [value for key, value in self._method.parameters.items() if not key.endswith("gate")]
            groups = [{"params": others}, {"params": gates}]
            self._optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)
        else:
            self._start = chosen.make(context)

    @property
    def transferred_parameters(self) -> int:
        """Entries of the target's parameters that the source writes."""
        return self.pairing.transferable_parameters

    @property
    def parameters_count(self) -> int:
        """Parameters of the adapter, which is trained with the target and never exported as part of it."""
        return sum(value.numel() for value in self._method.parameters.values()) if self._method is not None else 0

    def start(self) -> None:
        """Write what the method writes before step 0."""
        for update in self._start:
            stored = update.pair.target_stored or StoredSlice(name=update.pair.target)
            view = WeightView(self._target[stored.name], update.pair.form)
            write = view.write_columns_ if stored.transposed else view.write_rows_
            write(update.rows + (stored.rows[0] if stored.rows else 0), update.values)
        self._start = ()

    def transfers_at(self, step: int) -> bool:
        """Whether a transfer happens at a step: every `cycle` steps, up to the share `stop_at` of them."""
        return self._method is not None and step % self._spec.cycle == 0 and step < self._last_step

    def before(self, step: int) -> None:
        """At a transfer, replace the target's paired weights: W ← M(W, W_source)."""
        if self._method is not None and self.transfers_at(step):
            if self._live is not None:
                self._method.set_source_factors(self._live_factors)
            elif (index := self._state_index_at(step)) != self._state_index:
                self._method.set_source_weights(self._named_weights(self._states[index]))
                self._state_index = index
            self._method.write()

    def after_backward(self, step: int) -> None:
        """At a transfer, propagate the loss's gradient at the new weights to the target's own and to the adapter."""
        if self._method is not None and self.transfers_at(step):
            self._method.backward()

    def after_step(self, step: int) -> None:
        """At a transfer, let the adapter learn."""
        if self._method is None or not self.transfers_at(step):
            return
        self._method.after_step()
        nn.utils.clip_grad_norm_(self._method.parameters.values(), self._clip_norm)
        for group, rate in zip(self._optimizer.param_groups, (ADAPTER_RATE, GATE_RATE), strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / self._last_step)) / 2
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _state_index_at(self, step: int) -> int:
        """Which of the source's states a transfer uses: later transfers use later states."""
        transfers = math.ceil(self._last_step / self._spec.cycle)
        return len(self._states) * (step // self._spec.cycle) // transfers

    def _named_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A source's weights by pairing's names; for a sham, without its knowledge."""
        return SourceWeights(weights if self._sham is None else ShamWeights(weights, self._sham), self.pairing)

    def _live_factors(self, pair: WeightPair) -> Factors:
        """The factors of a live source's weight as it is now."""
        assert self._live is not None
        assert pair.rank is not None
        if pair.source_stored is None:
            view = WeightView(self._live[pair.source], pair.form)
        else:  # a slice of a fused or transposed weight: the only case in which the weight is gathered
            view = view_of(self._live_weights[pair.source], pair.form)
        B, A = factorize(view, pair.rank)
        return (B, A) if self._sham is None else self._sham.factors(B, A, pair.source)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapter's parameters, and as `source.…` its other state: the source's factors, power-step vectors."""
        if self._method is None:
            return {}
        tensors = {**self._method.parameters, **{f"source.{key}": value for key, value in self._method.factors.items()}}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def state_dict(self) -> TransferState:
        """What a resumed run needs to continue bit for bit: tensors and numbers only.

        The source's factors are part of it: another machine could compute them rotated within equal singular values.
        """
        if self._method is None:
            return {}
        return {"adapter": self.adapter_tensors(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: TransferState) -> None:
        """Continue from the state of an interrupted run."""
        if self._method is None:
            return
        with torch.no_grad():
            for name, tensor in state["adapter"].items():
                if name.startswith("source."):
                    self._method.factors[name.removeprefix("source.")].copy_(tensor)
                else:
                    self._method.parameters[name].copy_(tensor)
        self._optimizer.load_state_dict(state["optimizer"])
