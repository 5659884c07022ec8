"""The strategies `single` and `ddp`: every process holds the whole model and its optimizer."""

from __future__ import annotations

import contextlib

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mergenet_core.spec.job import TrainSpec
from mergenet_core.tasks.task import Outputs
from mergenet_core.training.distributed.world import World
from mergenet_core.training.engines.engine import saved_shards
from mergenet_core.training.optim import clip_gradient, make_optimizer, new_state_of, set_rate, state_of


class ReplicatedEngine:
    """A model that every process holds whole; with several processes, gradients are averaged by DDP."""

    def __init__(self, model: nn.Module, spec: TrainSpec, world: World) -> None:
        self.world, self.spec, self.module = world, spec, model
        model.to(world.device)
        self._parallel: DistributedDataParallel | None = None
        if world.size > 1:
            # a gradient lives in the bucket that is exchanged, so that it is held once
            self._parallel = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
        self._forward: nn.Module = self._parallel or model
        self._optimizer = make_optimizer(model, spec)
        self.parameters = dict(model.named_parameters())
        self.shards = saved_shards(model, self.parameters)

    def __call__(self, **inputs: Tensor) -> Outputs:
        """The model's outputs, under autocast if the job's precision is bf16."""
        with self.world.accelerator.autocast():
            outputs: Outputs = self._forward(**inputs)
        return outputs

    def train(self, mode: bool) -> None:
        """Switch training mode on or off."""
        self._forward.train(mode)

    def begin(self) -> None:
        """Drop the gradients of the step before."""
        self._optimizer.zero_grad()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch; processes exchange gradients with the last one only."""
        loss = loss / self.spec.micro_batches
        waits = self._parallel is not None and not last
        with self._parallel.no_sync() if self._parallel is not None and waits else contextlib.nullcontext():
            loss.backward()  # type: ignore[no-untyped-call]

    def clip(self) -> None:
        """Clip the norm of the whole model's gradient."""
        clip_gradient(self.module, self.spec)

    def step(self, rate: float) -> None:
        """Let the optimizer step at a learning rate."""
        set_rate(self._optimizer, rate)
        self._optimizer.step()

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        """The optimizer's tensors for a parameter, flat."""
        return state_of(self._optimizer, self.parameters[name])

    def new_optimizer_state(self, name: str, keys: list[str], steps: int) -> dict[str, Tensor]:
        """The named tensors of the optimizer, flat, to be filled with those after so many steps."""
        return new_state_of(self._optimizer, self.parameters[name], keys, steps)
