"""From a strategy's name to its engine."""

from __future__ import annotations

from contextlib import AbstractContextManager

from accelerate import init_empty_weights
from torch import nn

from mergenet_core.spec.deepspeed import zero_config
from mergenet_core.spec.job import TrainSpec
from mergenet_core.training.distributed.world import World
from mergenet_core.training.engines.engine import Engine
from mergenet_core.training.engines.fsdp2 import Fsdp2Engine
from mergenet_core.training.engines.replicated import ReplicatedEngine
from mergenet_core.training.engines.zero import ZeroEngine, quiet_deepspeed


def open_engine(model: nn.Module, spec: TrainSpec, world: World) -> Engine:
    """The model under the strategy that the resources name."""
    if world.resources.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    strategy = world.resources.strategy
    if strategy == "fsdp2":
        return Fsdp2Engine(model, spec, world)
    if strategy.startswith("zero"):
        return ZeroEngine(model, spec, world)
    return ReplicatedEngine(model, spec, world)


def skeleton_context(spec: TrainSpec, world: World) -> AbstractContextManager[object] | None:
    """The context in which a model is built without whole weights; None for strategies that hold the model whole."""
    context: AbstractContextManager[object] | None = None
    if world.resources.strategy == "fsdp2":
        context = init_empty_weights(include_buffers=False)
    if world.resources.strategy == "zero3":
        config = zero_config(world.resources, spec, world.size, world.device.type)
        context = quiet_deepspeed(world).zero.Init(config_dict_or_path=config)
    return context
