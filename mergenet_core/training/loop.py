"""The one training loop. A step is a pure function of the state before it, the seed and the step's number.

Batches and dropout are drawn from (seed, step), so a resumed run needs no iterator and no generator state, and two arms
of one seed see the same batches and the same dropout whatever else draws random numbers.

Legend: n examples of a split, b examples of a batch, l labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergenet_core.errors import OutOfMemory, TrainingDiverged
from mergenet_core.spec.job import TrainSpec
from mergenet_core.tasks.task import Augmented, Examples, Task, Weighted
from mergenet_core.training.distill import Distillation
from mergenet_core.training.distributed.engines import Engine
from mergenet_core.training.distributed.world import World
from mergenet_core.training.optim import learning_rate
from mergenet_core.transfer.cycle import Transfer

TIMED_STEPS = 1000
"""At most so many step times are kept, evenly spaced, for the median."""
_STREAMS = 16
"""Streams of random numbers below are the loop's own; from here on each micro-batch has one for its dropout."""
Model = Callable[..., Any]
"""Keyword arguments of a batch → the model's outputs."""


class Training:
    """A model in training: weights, optimizer, transfer, and how far it is."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        *,
        seed: int,
        field: str = "train",
    ) -> None:
        self.engine = engine
        self.task = task
        self.spec: TrainSpec = engine.spec
        self.field = field
        """Where the document says how this is trained, for sentences about it."""
        self.seed = seed
        self.transfer: Transfer | None = None
        self.distillation: Distillation | None = None
        self.partner: Training | None = None
        """A source that learns beside this model: it takes a step with each of this one's."""
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
        if self.partner is not None:
            self.partner.start()

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
        if self.partner is not None:
            self.partner.advance()

    def _advance(self) -> float:
        step, engine = self.step, self.engine
        index_b = batch_index(len(self.task.train), self.spec.batch_size, self.seed, step)
        parts = engine.world.share(index_b).chunk(self.spec.micro_batches)
        shares = self._shares(index_b)
        engine.train(True)
        if self.transfer is not None:
            torch.manual_seed(draw_seed(self.seed, step, stream=2))
            self.transfer.before(step)
        engine.begin()
        total = torch.zeros((), device=engine.world.device)
        for number, (part_b, share) in enumerate(zip(parts, shares, strict=True)):
            loss = share * self._loss(part_b, engine.world.place * len(parts) + number)
            engine.backward(loss, last=number == len(parts) - 1)
            total += loss.detach() / len(parts)
        if self.transfer is not None:
            self.transfer.after_backward(step)
        engine.clip()
        engine.step(learning_rate(self.spec, step))
        if self.transfer is not None:
            self.transfer.after_step(step)
        return float(engine.world.mean(total))

    def _shares(self, index_b: Tensor) -> list[float]:
        """How much each micro-batch of this process counts in the step's loss, compared with the mean micro-batch.

        An engine averages over micro-batches and processes, so that its average of losses that are multiplied by these
        is the mean over all tokens of the step. They are exactly 1 where examples weigh equally.
        """
        micro_batches, world = self.spec.micro_batches, self.engine.world
        if not isinstance(self.task.train, Weighted):
            return [1.0] * micro_batches
        weights_b = self.task.train.weights(index_b)
        total = max(1, int(weights_b.sum()))
        parts = world.share(weights_b).chunk(micro_batches)
        return [int(part_b.sum()) * micro_batches * world.size / total for part_b in parts]

    def _loss(self, index_b: Tensor, place: int) -> Tensor:
        """The loss of one micro-batch; `place` is its number among those of all processes."""
        device = self.engine.world.device
        examples, draw = self.task.train, draw_seed(self.seed, self.step, stream=4)
        seen = examples.augmented_batch(index_b, draw) if isinstance(examples, Augmented) else examples.batch(index_b)
        batch = {name: value.to(device) for name, value in seen.items()}
        torch.manual_seed(draw_seed(self.seed, self.step, stream=0 if place == 0 else _STREAMS + place))
        outputs = self.engine(**inputs(batch, self.task))
        loss = self.task.loss(outputs, batch)
        if self.distillation is not None:
            loss = self.distillation.combine(loss, outputs["logits"].float(), batch["labels"], index_b)
        return loss

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """The task's metrics over a split."""
        self.engine.sync_buffers()
        self.engine.train(False)
        metrics = evaluate(self.engine, self.task, examples, self.engine.world, self.spec.batch_size)
        self.engine.train(True)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything but weights and the optimizer's tensors, the same on every process: tensors and numbers."""
        return {
            "step": self.step,
            "started": self.started,
            "extra_seconds": self.extra_seconds,
            "loss": self.loss,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "transfer": self.transfer.state_dict() if self.transfer is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]
        self.started, self.extra_seconds = state["started"], state["extra_seconds"]
        self.step_seconds = list(state["step_seconds"])
        if self.transfer is not None:
            self.transfer.load_state_dict(state["transfer"])


def evaluate(model: Model, task: Task, examples: Examples, world: World, batch_size: int) -> dict[str, float]:
    """The task's metrics over a split, of a model in evaluation mode."""
    return task.measure(over(model, task, examples, world, batch_size, task.answers), examples)


@torch.no_grad()
def over(
    model: Model,
    task: Task,
    examples: Examples,
    world: World,
    batch_size: int,
    keep: Callable[[Any, Mapping[str, Tensor]], Tensor],
) -> Tensor:
    """What `keep` takes of the model's outputs and the batch, one row an example of the split.

    The forward passes are made in the order that wastes the least padding, each process making its share.
    """
    order = examples.evaluation_order()
    found = []
    for index_b in torch.split(order, max(batch_size, task.evaluation_batch)):
        batch = {name: value.to(world.device) for name, value in examples.batch(world.share(index_b)).items()}
        found.append(world.gathered(keep(model(**inputs(batch, task)), batch).float(), len(index_b)))
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
