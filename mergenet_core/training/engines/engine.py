"""What every strategy provides of a model in training: forward, backward, clip, step, and where its tensors are.

Strategies differ in what a process holds, never in what is computed: the same job gives the same curve.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from mergenet_core.spec.job import TrainSpec
from mergenet_core.tasks.task import Outputs
from mergenet_core.training.distributed.world import World
from mergenet_core.transfer.shards import ReplicatedShard, ScalarShard, TensorShard, make_shard


class Engine(Protocol):
    """A model and its optimizer under one strategy."""

    world: World
    spec: TrainSpec
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    """Tied ones are listed once."""
    shards: dict[str, TensorShard]
    """This process's shard of every saved tensor; tied ones are listed once."""

    def __call__(self, **inputs: Tensor) -> Outputs:
        """The model's outputs, computed in the job's precision."""

    def train(self, mode: bool) -> None:
        """Switch training mode on or off."""

    def begin(self) -> None:
        """Drop the gradients of the step before; called before a step's first backward pass."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch; after the last one it is the mean over micro-batches and processes."""

    def clip(self) -> None:
        """Clip the norm of the whole model's gradient."""

    def step(self, rate: float) -> None:
        """Let the optimizer step at a learning rate."""

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        """The optimizer's tensors for a parameter, flat, where this process holds the parameter.

        The number of steps is not among them.
        """

    def new_optimizer_state(self, name: str, keys: list[str], steps: int) -> dict[str, Tensor]:
        """The named tensors of the optimizer, flat, made if absent, to be filled with those after so many steps."""


def give_axes(model: nn.Module) -> frozenset[str]:
    """Give each parameter without an axis, such as CLIP's temperature, one of one entry; return their names.

    FSDP2 and DeepSpeed divide axes, and refuse parameters that have none.
    """
    without = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 0}
    for name, parameter in without.items():
        path, _, last = name.rpartition(".")
        replaced = nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(path), last, replaced)
    return frozenset(without)


def saved_shards(
    module: nn.Module, parameters: dict[str, nn.Parameter], scalars: frozenset[str] = frozenset()
) -> dict[str, TensorShard]:
    """This process's shard of every parameter and every saved buffer.

    `scalars` names the parameters that were given an axis, and are saved without.
    """
    saved = module.state_dict().keys()
    made = {name: make_shard(parameter) for name, parameter in parameters.items()}
    return {
        **{name: ScalarShard(shard) if name in scalars else shard for name, shard in made.items()},
        **{name: ReplicatedShard(buffer) for name, buffer in module.named_buffers() if name in saved},
    }


def named_shards(engine: Engine) -> dict[str, TensorShard]:
    """Like `Engine.shards`, with tied tensors listed under each of their names."""
    by_id = {id(shard.parameter): shard for shard in engine.shards.values()}
    tied = engine.module.named_parameters(remove_duplicate=False)
    return {name: by_id[id(parameter)] for name, parameter in tied if id(parameter) in by_id} | engine.shards
