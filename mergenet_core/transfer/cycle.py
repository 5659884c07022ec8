"""The transfer cycle: when knowledge moves, driven by the training loop; the target stays a plain module throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mergenet_core.jobs.pairing import Pairing
from mergenet_core.jobs.spec import TransferSpec
from mergenet_core.transfer.methods import TRAINING_FREE


class Transfer:
    """Moves a frozen source's knowledge into a target while it trains.

    The loop calls `start` once before the first step of a run that is not resumed, and at every step `before` the
    forward pass, `after_backward` (gradients unscaled, not yet clipped) and `after_step` (the optimizer has stepped).
    """

    def __init__(
        self,
        source_weights: Mapping[str, Tensor],
        source_config: Mapping[str, Any],
        target: nn.Module,
        pairing: Pairing,
        spec: TransferSpec,
        *,
        steps: int,
        seed: int,
        method: str | None = None,
    ) -> None:
        self.pairing = pairing
        self._weights = target.state_dict(keep_vars=True)
        self._written = TRAINING_FREE[method or pairing.method](source_weights, self._weights, pairing)

    @property
    def transferred_parameters(self) -> int:
        """Entries of the target's parameters that the source writes."""
        return self.pairing.transferable_parameters

    @property
    def parameters_count(self) -> int:
        """Parameters of the adapter, which are trained beside the target and never exported with it."""
        return 0

    def start(self) -> None:
        """Write what needs no training, before step 0."""
        with torch.no_grad():
            for name, W in self._written.items():
                self._weights[name].copy_(W)

    def before(self, step: int) -> None:
        """Transfer at every `cycle`-th step of the first `stop_at` of them: W ← X'."""

    def after_backward(self, step: int) -> None:
        """Carry the loss's gradient at X' on to the target's weight and to the adapter."""

    def after_step(self, step: int) -> None:
        """Let the adapter learn."""

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapter's weights and the source's factors, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit: tensors and numbers only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of an interrupted run."""
