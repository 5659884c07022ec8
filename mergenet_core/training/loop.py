"""The one training loop. A step is a pure function of the state before it, the seed and the step's number.

Batches and dropout are drawn from (seed, step), so a resumed run needs no iterator and no generator state, and two arms
of one seed see the same batches and the same dropout no matter what else draws random numbers.

Legend: n examples of a split, b examples of a batch, l labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor

from mergenet_core.errors import OutOfMemory, TrainingDiverged
from mergenet_core.spec.job import TrainSpec
from mergenet_core.tasks.task import Augmented, Batch, Copied, Examples, Outputs, Task, Weighted, pool_of
from mergenet_core.training.distillation.distill import Distillation
from mergenet_core.training.distributed.world import World
from mergenet_core.training.engines.tensors import sync_buffers
from mergenet_core.training.fit.stages import Fitted, Stages
from mergenet_core.training.learners import Learner
from mergenet_core.training.optim import learning_rate
from mergenet_core.transfer.cycle import Transfer, TransferState

TIMED_STEPS = 1000
"""The most step times that are stored for the median; they are evenly spaced."""
_STREAMS = 16
"""Streams of random numbers below this are the loop's own; above it, each micro-batch has one for its dropout."""
Model: TypeAlias = Callable[..., Outputs]
"""Keyword arguments of a batch → the model's outputs."""


class TrainingState(TypedDict):
    """How far a model's training is, without weights and the optimizer's tensors; the keys are a checkpoint's."""

    step: int
    started: bool
    extra_seconds: float
    loss: float
    seconds: float
    step_seconds: list[float]
    transfer: TransferState


@dataclass(frozen=True)
class _Part:
    """What a process reads in one micro-batch of a step."""

    index_b: Tensor
    """Training examples."""
    weight: float
    """The weight of their loss in the step's, relative to the mean micro-batch."""
    pool_b: Tensor | None = None
    """Inputs whose labels are not used; None where the step reads none."""
    pool_weight: float = 1.0


class Training:
    """A model in training: weights, optimizer, transfer, and how far it is."""

    def __init__(
        self,
        learner: Learner,
        *,
        seed: int,
        field: str = "train",
        transfer: Transfer | None = None,
        joint_source: Training | None = None,
        fitted: Fitted | None = None,
    ) -> None:
        self.engine = learner.engine
        self.task = learner.task
        self.spec: TrainSpec = learner.engine.spec
        self.field = field
        """The field of the job document with the training settings; errors name it."""
        self.seed = seed
        self.transfer = transfer
        self.joint_source = joint_source
        """A source that learns together with this model: it takes a step after each of this one's."""
        self.fitted = fitted
        """Method `fit`: what the target began from."""
        self.parameters = learner.parameters
        self.step = 0
        self.started = False
        self.loss = math.nan
        self.seconds = 0.0
        self.extra_seconds = fitted.seconds if fitted is not None else 0.0
        self.step_seconds: list[float] = []

    @property
    def _stages(self) -> Stages | None:
        return self.fitted.stages if self.fitted is not None else None

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
        if self.joint_source is not None:
            self.joint_source.start()

    def advance(self, distillation: Distillation | None = None) -> None:
        """One step: transfer, forward, backward, clip, update; `distillation` adds a teacher's loss.

        Raises: `TrainingDiverged`, `OutOfMemory`.
        """
        begun = time.perf_counter()
        try:
            self.loss = self._advance(distillation)
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
        if self.joint_source is not None:
            self.joint_source.advance()

    def _advance(self, distillation: Distillation | None) -> float:
        step, engine = self.step, self.engine
        parts = self._parts(distillation)
        engine.train(True)
        if self.transfer is not None:
            torch.manual_seed(draw_seed(self.seed, step, stream=2))
            self.transfer.before(step)
        engine.begin()
        total = torch.zeros((), device=engine.world.device)
        for number, part in enumerate(parts):
            number_of_all = engine.world.world_rank * len(parts) + number
            loss = self._loss(part, number_of_all, distillation)
            if self._stages is not None and part.pool_b is not None:
                loss = loss + self._stage_loss(part.pool_b, self._stages)
            engine.backward(loss, last=number == len(parts) - 1)
            total += loss.detach() / len(parts)
        if self.transfer is not None:
            self.transfer.after_backward(step)
        engine.clip()
        engine.step(learning_rate(self.spec, step))
        if self.transfer is not None:
            self.transfer.after_step(step)
        return float(engine.world.mean(total))

    def _parts(self, distillation: Distillation | None) -> list[_Part]:
        """What this process reads in the step, by micro-batch."""
        micro_batches, pool = self.spec.micro_batches, pool_of(self.task)
        index_b = batch_index(len(self.task.train), self.spec.batch_size, self.seed, self.step)
        own = self.engine.world.share(index_b).chunk(micro_batches)
        weights = self._weights(self.task.train, index_b)
        size = distillation.pool_batch_size if distillation is not None else None
        if self._stages is not None:
            size = self._stages.batch_size
        if size is None:
            return [_Part(part_b, weight) for part_b, weight in zip(own, weights, strict=True)]
        pool_index_b = batch_index(len(pool), size, self.seed, self.step, stream=5)
        pooled = self.engine.world.share(pool_index_b).chunk(micro_batches)
        pool_weights = self._weights(pool, pool_index_b)
        return [_Part(*part) for part in zip(own, weights, pooled, pool_weights, strict=True)]

    def _weights(self, examples: Examples, index_b: Tensor) -> list[float]:
        """The weight of each micro-batch of this process in the step's loss, relative to the mean micro-batch.

        An engine averages over micro-batches and processes. Losses that are multiplied by these weights average to the
        mean over all tokens of the step. Where examples weigh equally, the weights are exactly 1.
        """
        micro_batches, world = self.spec.micro_batches, self.engine.world
        if not isinstance(examples, Weighted):
            return [1.0] * micro_batches
        weights_b = examples.weights(index_b)
        total = max(1, int(weights_b.sum()))
        own = world.share(weights_b).chunk(micro_batches)
        return [int(part_b.sum()) * micro_batches * world.size / total for part_b in own]

    def _loss(self, part: _Part, number: int, distillation: Distillation | None) -> Tensor:
        """The mean loss of one micro-batch; `number` counts the micro-batches of all processes.

        Where the labelled batch has no share in it, it is not computed.
        """
        torch.manual_seed(draw_seed(self.seed, self.step, stream=0 if number == 0 else _STREAMS + number))
        if distillation is None:
            outputs, batch = self._forward(self._labelled(part.index_b))
            return part.weight * self.task.loss(outputs, batch)
        loss, share = torch.zeros((), device=self.engine.world.device), distillation.spec.task_share
        if share > 0 or distillation.labelled:
            outputs, batch = self._forward(self._labelled(part.index_b))
            loss = part.weight * share * self.task.loss(outputs, batch)
            if distillation.labelled:
                return loss + part.weight * distillation.loss(self.task, outputs, batch, part.index_b, draw=0)
        return loss + self._distil(part, distillation)

    def _labelled(self, index_b: Tensor) -> Batch:
        examples, draw = self.task.train, draw_seed(self.seed, self.step, stream=4)
        return examples.augmented_batch(index_b, draw) if isinstance(examples, Augmented) else examples.batch(index_b)

    def _distil(self, part: _Part, distillation: Distillation) -> Tensor:
        """The teacher's loss of a micro-batch on unlabelled inputs, or on its examples with copies of them."""
        draw = draw_seed(self.seed, self.step, stream=6)
        if distillation.pool_batch_size is None:
            assert isinstance(self.task.train, Copied), "the spec allows copies for images only"
            outputs, batch = self._forward(self.task.train.with_copies(part.index_b, draw))
            return part.weight * distillation.loss(self.task, outputs, batch, part.index_b, draw)
        assert part.pool_b is not None
        with self._stages.watch(self.engine.module) if self._stages is not None else nullcontext():
            outputs, batch = self._forward(pool_of(self.task).batch(part.pool_b))
        return part.pool_weight * distillation.loss(self.task, outputs, batch, part.pool_b, draw)

    def _stage_loss(self, pool_b: Tensor, stages: Stages) -> Tensor:
        """The stage loss of a micro-batch, which a distillation may have read already."""
        if stages.watched:
            return stages.loss(pool_b)
        with stages.watch(self.engine.module):
            outputs, _ = self._forward(pool_of(self.task).batch(pool_b))
        # strategies that shard gather the weights around the blocks when a gradient reaches the model's outputs
        reached = [X.sum() for X in outputs.values() if isinstance(X, Tensor) and X.requires_grad]
        return stages.loss(pool_b) + 0.0 * torch.stack(reached).sum()

    def _forward(self, read: Batch) -> tuple[Outputs, Batch]:
        """The model's outputs for a batch, and the batch on the process's device."""
        batch = {name: value.to(self.engine.world.device) for name, value in read.items()}
        return self.engine(**model_inputs(batch, self.task)), batch

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """The task's metrics over a split."""
        return self.task.measure(self.answers(examples), examples)

    def answers(self, examples: Examples) -> Tensor:
        """What the task keeps of the forward passes over a split, one row per example."""
        sync_buffers(self.engine)
        self.engine.train(False)
        world, batch_size = self.engine.world, self.spec.batch_size
        answers_n = forward_all(self.engine, self.task, examples, world, batch_size, self.task.answers)
        self.engine.train(True)
        return answers_n

    def state_dict(self) -> TrainingState:
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

    def load_state_dict(self, state: TrainingState) -> None:
        """Go on from where `state_dict` was taken."""
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]
        self.started, self.extra_seconds = state["started"], state["extra_seconds"]
        self.step_seconds = list(state["step_seconds"])
        if self.transfer is not None:
            self.transfer.load_state_dict(state["transfer"])


def evaluate(model: Model, task: Task, examples: Examples, world: World, batch_size: int) -> dict[str, float]:
    """The task's metrics over a split, of a model in evaluation mode."""
    return task.measure(forward_all(model, task, examples, world, batch_size, task.answers), examples)


@torch.no_grad()
def forward_all(
    model: Model,
    task: Task,
    examples: Examples,
    world: World,
    batch_size: int,
    keep: Callable[[Outputs, Batch], Tensor],
) -> Tensor:
    """What `keep` returns for the model's outputs and the batch, one row per example of the split, in its order.

    The forward passes are made in the order that keeps padding small; each process makes its share.
    """
    order = examples.evaluation_order()
    found = []
    for index_b in torch.split(order, max(batch_size, task.evaluation_batch)):
        batch = {name: value.to(world.device) for name, value in examples.batch(world.share(index_b)).items()}
        found.append(world.gathered(keep(model(**model_inputs(batch, task)), batch).float(), len(index_b)))
    return torch.cat(found)[torch.argsort(order)]


def model_inputs(batch: Batch, task: Task) -> dict[str, Tensor]:
    """The tensors of a batch that are passed to the model: all but the targets."""
    return {name: value for name, value in batch.items() if name not in task.targets}


def batch_index(examples: int, batch_size: int, seed: int, step: int, stream: int = 1) -> Tensor:
    """The examples of a step: consecutive positions in an endless series of epochs, each with its own permutation."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // examples
    drawn = []
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(draw_seed(seed, epoch, stream)))
        drawn.append(order[positions[epochs == epoch] % examples])
    return torch.cat(drawn)


def draw_seed(seed: int, number: int, stream: int = 0) -> int:
    """A seed for the number-th draw of a stream; neighbouring seeds and numbers give unrelated ones."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**64
    mixed = (mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93 % 2**64
    return (mixed ^ (mixed >> 32)) >> 1


def raise_if_out_of_memory(error: BaseException, step: int, batch_size: int, field: str = "train") -> None:
    """Raise `OutOfMemory` if that is what an error means, whichever allocator raised it; do nothing otherwise."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error):
        raise OutOfMemory(
            f"memory ran out at step {step} with {field}.batch_size {batch_size}; halve it, shorten max_length or "
            "image_size, choose a smaller target, or use a device with more memory"
        ) from error
