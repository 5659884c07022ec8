"""The one training loop. A step is a pure function of the state before it, the seed and the step's number.

Batches and dropout are drawn from (seed, step), so a resumed run needs no iterator and no generator state, and two arms
of one seed see the same batches and the same dropout whatever else draws random numbers.

Legend: n examples of a split, b examples of a batch, l labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mergenet_core.errors import OutOfMemory, TrainingDiverged
from mergenet_core.jobs.spec import TrainSpec
from mergenet_core.tasks.task import Examples, Task
from mergenet_core.training.distill import Distillation
from mergenet_core.training.optim import learning_rate, make_optimizer

TIMED_STEPS = 1000
"""At most so many step times are kept, evenly spaced, for the median."""


class Transferring(Protocol):
    """What the loop drives of a transfer (`mergenet_core.transfer.cycle.Transfer`)."""

    def start(self) -> None:
        """Before the first step."""

    def before(self, step: int) -> None:
        """Before the step's forward pass."""

    def after_backward(self, step: int) -> None:
        """When gradients are there, before clipping."""

    def after_step(self, step: int) -> None:
        """After the target's optimizer step."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and scalars that resume it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The other way round."""


class Training:
    """A model in training: weights, optimizer, transfer, and how far it is."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        spec: TrainSpec,
        accelerator: Accelerator,
        *,
        seed: int,
        transfer: Transferring | None = None,
        distillation: Distillation | None = None,
        field: str = "train",
    ) -> None:
        self.model = model
        self.task = task
        self.spec = spec
        self.field = field
        """Where the document says how this is trained, for sentences about it."""
        self.accelerator = accelerator
        self.seed = seed
        self.transfer = transfer
        self.distillation = distillation
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(model, spec))
        self.step = 0
        self.started = False
        self.loss = math.nan
        self.seconds = 0.0
        self.extra_seconds = 0.0
        self.step_seconds: list[float] = []

    def start(self) -> None:
        """Let a transfer write what it writes before the first step; once, however often the trial is resumed."""
        if self.started:
            return
        begun = time.perf_counter()
        if self.transfer is not None:
            torch.manual_seed(draw_seed(self.seed, 0, stream=3))
            self.transfer.start()
        self.extra_seconds += time.perf_counter() - begun
        self.started = True

    def advance(self) -> None:
        """One step: transfer, forward, backward, clip, update. Raises: `TrainingDiverged`, `OutOfMemory`."""
        begun = time.perf_counter()
        try:
            self.loss = self._advance()
        except (MemoryError, RuntimeError) as error:
            raise_if_out_of_memory(error, self.step, self.spec.batch_size, self.field)
            raise
        if not math.isfinite(self.loss):
            raise TrainingDiverged(
                f"the loss is {self.loss} at step {self.step}; lower {self.field}.learning_rate "
                f"(given: {self.spec.learning_rate:g}), add {self.field}.warmup_steps, "
                f"or clip with {self.field}.clip_norm"
            )
        elapsed = time.perf_counter() - begun
        self.seconds += elapsed
        if self.step % max(1, self.spec.steps // TIMED_STEPS) == 0:
            self.step_seconds.append(elapsed)
        self.step += 1

    def _advance(self) -> float:
        step = self.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, step)
        index_b = batch_index(len(self.task.train), self.spec.batch_size, self.seed, step)
        batch = {name: value.to(self.accelerator.device) for name, value in self.task.train.batch(index_b).items()}
        self.model.train()
        if self.transfer is not None:
            torch.manual_seed(draw_seed(self.seed, step, stream=2))
            self.transfer.before(step)
        torch.manual_seed(draw_seed(self.seed, step))
        with self.accelerator.autocast():
            outputs = self.model(**inputs(batch, self.task))
        loss = self.task.loss(outputs, batch)
        if self.distillation is not None:
            loss = self.distillation.combine(loss, outputs.logits.float(), batch["labels"], index_b)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.transfer is not None:
            self.transfer.after_backward(step)
        if self.spec.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.spec.clip_norm)
        self.optimizer.step()
        if self.transfer is not None:
            self.transfer.after_step(step)
        return float(loss.detach())

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """The task's metrics over a split."""
        return evaluate(self.model, self.task, examples, self.accelerator, self.spec.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's weights: tensors, numbers, strings."""
        return {
            "step": self.step,
            "started": self.started,
            "extra_seconds": self.extra_seconds,
            "loss": self.loss,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "optimizer": self.optimizer.state_dict(),
            "transfer": self.transfer.state_dict() if self.transfer is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]
        self.started, self.extra_seconds = state["started"], state["extra_seconds"]
        self.step_seconds = list(state["step_seconds"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.transfer is not None:
            self.transfer.load_state_dict(state["transfer"])


def evaluate(
    model: nn.Module, task: Task, examples: Examples, accelerator: Accelerator, batch_size: int
) -> dict[str, float]:
    """The task's metrics over a split."""
    return task.measure(over(model, task, examples, accelerator, batch_size, task.answers), examples)


@torch.no_grad()
def over(
    model: nn.Module,
    task: Task,
    examples: Examples,
    accelerator: Accelerator,
    batch_size: int,
    keep: Callable[[Any, Mapping[str, Tensor]], Tensor],
) -> Tensor:
    """What `keep` takes of the model's outputs and the batch, one row an example of the split.

    The forward passes are made in the order that wastes the least padding.
    """
    model.eval()
    order = examples.evaluation_order()
    found = []
    for index_b in torch.split(order, max(batch_size, 128)):
        batch = {name: value.to(accelerator.device) for name, value in examples.batch(index_b).items()}
        with accelerator.autocast():
            outputs = model(**inputs(batch, task))
        found.append(keep(outputs, batch).float().cpu())
    model.train()
    return torch.cat(found)[torch.argsort(order)]


def inputs(batch: Mapping[str, Tensor], task: Task) -> dict[str, Tensor]:
    """The part of a batch that the model gets to see."""
    return {name: value for name, value in batch.items() if name not in task.targets}


def batch_index(examples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The examples of a step: consecutive places in an endless row of epochs, each a permutation of its own."""
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // examples
    drawn = []
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(draw_seed(seed, epoch, stream=1)))
        drawn.append(order[places[epochs == epoch] % examples])
    return torch.cat(drawn)


def draw_seed(seed: int, number: int, stream: int = 0) -> int:
    """A seed for the number-th draw of a stream; neighbouring seeds and numbers give unrelated ones."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**64
    mixed = (mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93 % 2**64
    return (mixed ^ (mixed >> 32)) >> 1


def raise_if_out_of_memory(error: BaseException, step: int, batch_size: int, field: str = "train") -> None:
    """Turn the ways in which memory runs out into one. Raises: `OutOfMemory`."""
    words = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in words:
        raise OutOfMemory(
            f"memory ran out at step {step} with {field}.batch_size {batch_size}; halve it, shorten max_length or "
            "image_size, choose a smaller target, or use a device with more memory"
        ) from error
