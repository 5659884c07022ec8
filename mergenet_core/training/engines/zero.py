"""The strategies `zero1`, `zero2` and `zero3`: DeepSpeed's ZeRO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mergenet_core.spec.deepspeed import zero_config
from mergenet_core.spec.job import TrainSpec
from mergenet_core.tasks.task import Outputs
from mergenet_core.training.distributed.world import World
from mergenet_core.training.engines.engine import give_axes, saved_shards
from mergenet_core.training.optim import make_optimizer, set_rate
from mergenet_core.transfer.shards import make_shard
from mergenet_core.transfer.shards.zero12 import is_zero12


class ZeroOptimizer(Protocol):
    """What is used of DeepSpeed's optimizers."""

    param_groups: list[dict[str, object]]
    optimizer: torch.optim.Optimizer
    """The optimizer that makes the updates."""
    single_partition_of_fp32_groups: list[Tensor]
    """In stages 1 and 2 only."""
    grad_position: Mapping[int, tuple[int, int, int]]
    """In stage 3 only, as all that follows: the group of a parameter's flat weight, and its start in it."""
    fp32_partitioned_groups_flat: list[Tensor]

    def get_param_id(self, parameter: nn.Parameter) -> int:
        """DeepSpeed's number of a parameter."""


class ZeroModel(Protocol):
    """What is used of DeepSpeed's engine."""

    def __call__(self, **inputs: Tensor) -> Outputs:
        """The model's outputs."""

    def train(self, mode: bool) -> None:
        """Switch training mode on or off."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch, divided by their number and averaged over processes."""

    def step(self) -> None:
        """Count a micro-batch; after the last one, clip and update."""


class Zero(Protocol):
    """What is used of the module `deepspeed.zero`."""

    def Init(self, *, config_dict_or_path: Mapping[str, object]) -> AbstractContextManager[object]:  # noqa: N802
        """A context in which parameters are partitioned as soon as they are made."""


class DeepSpeed(Protocol):
    """What is used of the module `deepspeed`, which has no types."""

    zero: Zero

    def initialize(
        self, *, model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, object]
    ) -> tuple[ZeroModel, ZeroOptimizer, object, object]:
        """The model and its optimizer, partitioned."""


class ZeroEngine:
    """Optimizer state partitioned over the processes; from stage 2 gradients too, in stage 3 parameters as well."""

    def __init__(self, model: nn.Module, spec: TrainSpec, world: World) -> None:
        self.world, self.spec, self.module = world, spec, model
        scalars = give_axes(model)
        self._stage = int(world.resources.strategy.removeprefix("zero"))
        if self._stage < 3:
            model.to(world.device)
        self._forward, self._optimizer, _, _ = quiet_deepspeed(world).initialize(
            model=model,
            optimizer=make_optimizer(model, spec),
            config=zero_config(world.resources, spec, world.size, world.device.type),
        )
        self.parameters = dict(model.named_parameters())
        self.shards = saved_shards(model, self.parameters, scalars)

    def __call__(self, **inputs: Tensor) -> Outputs:
        """The model's outputs; DeepSpeed itself computes in bf16 if that is the job's precision."""
        if self.world.precision == "bf16":
            inputs = {name: X.bfloat16() if X.is_floating_point() else X for name, X in inputs.items()}
        return self._forward(**inputs)

    def train(self, mode: bool) -> None:
        """Switch training mode on or off."""
        self._forward.train(mode)

    def begin(self) -> None:
        """Nothing: DeepSpeed drops its gradients when it steps."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch; DeepSpeed divides and reduces."""
        self._forward.backward(loss)
        if not last:
            self._forward.step()  # counts the micro-batch, and updates nothing

    def clip(self) -> None:
        """Nothing: DeepSpeed clips when it steps."""

    def step(self, rate: float) -> None:
        """Let DeepSpeed clip and step at a learning rate."""
        set_rate(self._optimizer, rate)
        self._forward.step()

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        """The optimizer's tensors for this process's entries of a parameter, flat; empty if it holds none."""
        flat, start, count = self._entries(self.parameters[name])
        if flat is None or count == 0:
            return {}
        state = self._optimizer.optimizer.state.get(flat, {})
        return {
            key: value.narrow(0, start, count)
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == flat.shape
        }

    def new_optimizer_state(self, name: str, keys: list[str], steps: int) -> dict[str, Tensor]:
        """The named tensors of the optimizer, flat, to be filled with those after so many steps."""
        flat, start, count = self._entries(self.parameters[name])
        if flat is None:
            return {key: torch.empty(0) for key in keys}
        state = self._optimizer.optimizer.state[flat]
        for key in keys:
            state.setdefault(key, torch.zeros_like(flat))
        if "exp_avg" in keys:
            state["step"] = torch.tensor(float(steps))
        return {key: state[key].narrow(0, start, count) for key in keys}

    def _entries(self, parameter: nn.Parameter) -> tuple[Tensor | None, int, int]:
        """The updating optimizer's flat weight that holds a parameter's entries, with their start and number in it."""
        if self._stage == 3:
            group, start, _ = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
            held = make_shard(parameter).local()
            return self._optimizer.fp32_partitioned_groups_flat[group], start, held.flat.numel()
        mapping = parameter._hp_mapping if is_zero12(parameter) else None
        if mapping is None:
            return None, 0, 0
        flat = self._optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        return flat, mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel


def quiet_deepspeed(world: World) -> DeepSpeed:
    """DeepSpeed without its compiler at run time, with the process group that exists, and with warnings only."""
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if world.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.init_distributed(dist_backend=dist.get_backend() if dist.is_initialized() else "gloo")
    module: DeepSpeed = deepspeed
    return module
