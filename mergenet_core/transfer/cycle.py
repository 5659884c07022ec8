"""The transfer cycle: when knowledge moves, driven by the training loop; the target stays a plain module throughout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mergenet_core.architectures.axes import StoredSlice
from mergenet_core.pairing.result import Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.maps import Written
from mergenet_core.transfer.methods import CLIP_NORMS, LEARNED, TRAINING_FREE
from mergenet_core.transfer.parts import Parts
from mergenet_core.transfer.reencode import factorize
from mergenet_core.transfer.sham import Shuffled, shuffled
from mergenet_core.transfer.shards import Shard
from mergenet_core.transfer.views import WeightView, view_of

ADAPTER_RATE, GATE_RATE = 1e-4, 1e-3
"""AdamW's peak learning rates, falling to zero over the transfers by a cosine."""
CLIP_NORM = 1.0


class Transfer:
    """Moves a source's knowledge into a target while it trains.

    `live` holds this process's part of a source that learns beside the target; `states` are those of one that has
    learned before, the oldest first, shared out over the transfers; without either the source is frozen. With `sham`
    the source's entries are shuffled, in its weights or in the factors of a live one.

    The loop calls `start` once before the first step of a run that is not resumed, and at every step `before` the
    forward pass, `after_backward` (gradients unscaled, not yet clipped) and `after_step` (the optimizer has stepped).
    A resumed run calls `load_state_dict` instead of `start`. `target` is this process's part of every tensor by name.
    """

    def __init__(
        self,
        source_weights: Mapping[str, Tensor],
        target: Mapping[str, Shard],
        pairing: Pairing,
        spec: TransferSpec,
        *,
        steps: int,
        seed: int,
        method: str | None = None,
        live: Mapping[str, Shard] | None = None,
        states: Sequence[Mapping[str, Tensor]] = (),
        sham: bool = False,
    ) -> None:
        self.pairing = pairing
        self._spec = spec
        self._last = round(spec.stop_at * steps, 6)
        self._target, self._live = target, live
        self._states, self._state = states, 0
        self._sham_seed = seed if sham else None
        source_weights = self._told(source_weights)
        self._source = source_weights if live is not None else {}
        name = method or pairing.method
        self._method = LEARNED[name](source_weights, target, pairing, spec, seed) if name in LEARNED else None
        self._start: Iterable[Written] | None
        if self._method is None:
            self._start = TRAINING_FREE[name](source_weights, pairing)
        else:
            self._start = self._method.start
            gates = [value for key, value in self._method.parameters.items() if key.endswith("gate")]
            others = [value for key, value in self._method.parameters.items() if not key.endswith("gate")]
            self._rates = (ADAPTER_RATE, GATE_RATE)
            groups = [{"params": others}, {"params": gates}]
            self._optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)

    @property
    def transferred_parameters(self) -> int:
        """Entries of the target's parameters that the source writes."""
        return self.pairing.transferable_parameters

    @property
    def parameters_count(self) -> int:
        """Parameters of the adapter, which are trained beside the target and never exported with it."""
        return sum(value.numel() for value in self._method.parameters.values()) if self._method is not None else 0

    def start(self) -> None:
        """Write what needs no training, before step 0."""
        for part in self._start or ():
            stored = part.pair.target_stored or StoredSlice(name=part.pair.target)
            view = WeightView(self._target[stored.name], part.pair.form)
            write = view.write_columns_ if stored.transposed else view.write_rows_
            write(part.rows + (stored.rows[0] if stored.rows else 0), part.values)
        self._start = None

    def transfers_at(self, step: int) -> bool:
        """Whether a transfer happens at a step: every `cycle`-th of the first `stop_at` of them."""
        return self._method is not None and step % self._spec.cycle == 0 and step < self._last

    def before(self, step: int) -> None:
        """Transfer if it is time: W ← X'."""
        if self._method is not None and self.transfers_at(step):
            if self._live is not None:
                self._method.refresh(self._live_factors)
            elif (state := self._state_at(step)) != self._state:
                self._method.retake(self._told(self._states[state]))
                self._state = state
            self._method.write()

    def after_backward(self, step: int) -> None:
        """Carry the loss's gradient at X' on to the target's weight and to the adapter."""
        if self._method is not None and self.transfers_at(step):
            self._method.backward()

    def after_step(self, step: int) -> None:
        """Let the adapter learn."""
        if self._method is None or not self.transfers_at(step):
            return
        self._method.after_step()
        nn.utils.clip_grad_norm_(self._method.parameters.values(), CLIP_NORMS.get(self.pairing.method, CLIP_NORM))
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / self._last)) / 2
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _state_at(self, step: int) -> int:
        """Which of the source's states a transfer learns from: the last ones learn from the last."""
        transfers = math.ceil(self._last / self._spec.cycle)
        return len(self._states) * (step // self._spec.cycle) // transfers

    def _told(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A source's weights as the method sees them: by the names of pairing, shuffled for a sham."""
        return Parts(weights if self._sham_seed is None else Shuffled(weights, self._sham_seed), self.pairing)

    def _live_factors(self, pair: WeightPair) -> tuple[Tensor, Tensor]:
        """The factors of a source's weight as it is now."""
        assert self._live is not None
        assert pair.rank is not None
        if pair.source_stored is None:
            view = WeightView(self._live[pair.source], pair.form)
        else:  # a part of a weight that is stored fused or turned: the one case in which it is made whole
            view = view_of(self._source[pair.source], pair.form)
        B, A = factorize(view, pair.rank)
        if self._sham_seed is not None:
            B, A = (shuffled(X, f"{pair.source} {part}", self._sham_seed) for X, part in ((B, "B"), (A, "A")))
        return B, A

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapter's weights, and what it keeps of the source: its factors, or where iterations have got to."""
        if self._method is None:
            return {}
        tensors = {**self._method.parameters, **{f"source.{key}": value for key, value in self._method.factors.items()}}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit: tensors and numbers only.

        The source's factors belong to it: taken again on another machine they could turn within equal singular values.
        """
        if self._method is None:
            return {}
        return {"adapter": self.adapter_tensors(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of an interrupted run."""
        if self._method is None:
            return
        with torch.no_grad():
            for name, tensor in state["adapter"].items():
                kept = self._method.factors if name.startswith("source.") else self._method.parameters
                kept[name.removeprefix("source.")].copy_(tensor)
        self._optimizer.load_state_dict(state["optimizer"])
