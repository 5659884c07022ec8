"""A model in training under each strategy, with one face: forward, backward, clip, step, and where its parts lie.

Strategies differ in what a process holds, never in what is computed: the same job gives the same curve.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mergenet_core.spec.deepspeed import zero_config
from mergenet_core.spec.job import TrainSpec
from mergenet_core.spec.json_values import get_int, get_object
from mergenet_core.training.distributed.world import World
from mergenet_core.training.optim import make_optimizer
from mergenet_core.transfer.shards import FlatSlice, ReplicatedShard, TensorShard, gather_whole, make_shard

Reader = Callable[[str, int, int], Tensor]
"""Name, start and stop → those entries of a saved tensor, flat."""


class Engine:
    """A model that every process holds whole, and its optimizer: one process alone, or DDP."""

    optimizer: Any

    def __init__(self, model: nn.Module, spec: TrainSpec, world: World) -> None:
        self.world, self.spec = world, spec
        self.module = model
        self.forward: Any = model
        self._place()
        buffers = dict(self.module.named_buffers())
        saved = self.module.state_dict().keys()
        self.shards: dict[str, TensorShard] = {
            **{name: make_shard(parameter) for name, parameter in self._parameters().items()},
            **{name: ReplicatedShard(buffer) for name, buffer in buffers.items() if name in saved},
        }
        """This process's part of every saved tensor; one that goes by two names is listed once."""

    def named(self) -> dict[str, TensorShard]:
        """The same by every name that a tensor goes by."""
        by_id = {id(shard.parameter): shard for shard in self.shards.values()}
        tied = self.module.named_parameters(remove_duplicate=False)
        return {name: by_id[id(parameter)] for name, parameter in tied if id(parameter) in by_id} | self.shards

    def _parameters(self) -> dict[str, Any]:
        return dict(self.module.named_parameters())

    def _place(self) -> None:
        self.module.to(self.world.device)
        if self.world.size > 1:
            # a gradient lives in the bucket that is exchanged, so that it is held once
            self.forward = DistributedDataParallel(
                self.module, find_unused_parameters=True, gradient_as_bucket_view=True
            )
        self.optimizer = make_optimizer(self.module, self.spec)

    def __call__(self, **inputs: Tensor) -> Any:
        """The model's outputs."""
        with self.world.accelerator.autocast():
            return self.forward(**inputs)

    def train(self, mode: bool) -> None:
        """Into training mode, or out of it."""
        self.forward.train(mode)

    def begin(self) -> None:
        """Before a step's first backward pass."""
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add one micro-batch's share of the gradient; with the last one it is the mean over all processes."""
        loss = loss / self.spec.micro_batches
        if last or self.world.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        with self.forward.no_sync():
            loss.backward()  # type: ignore[no-untyped-call]

    def clip(self) -> None:
        """Clip the gradient's norm over all of the model."""
        if self.spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.spec.clip_norm)

    def step(self, rate: float) -> None:
        """Let the optimizer step at a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def sync_buffers(self) -> None:
        """Give every process the first one's buffers: a batch norm's statistics are those of its own examples."""
        if self.world.size > 1:
            for buffer in self.module.buffers():
                dist.broadcast(buffer, src=0)

    def held(self) -> dict[str, FlatSlice]:
        """What this process holds of every saved tensor."""
        return {name: shard.local() for name, shard in self.shards.items()}

    def snapshot(self) -> dict[str, FlatSlice]:
        """A copy on the CPU of what this process holds, which no later step changes."""
        return {name: _copied(piece) for name, piece in self.held().items()}

    def restore(self, pieces: Mapping[str, FlatSlice]) -> None:
        """Take over weights from such a copy of this very process."""
        for name, shard in self.shards.items():
            shard.write_(pieces[name].flat.to(shard.device))
            for copy in shard.copies():
                copy.flat.copy_(gather_whole(shard).view(-1))

    def load(self, read: Reader) -> None:
        """Take over saved weights; each process reads only what it holds."""
        for name, shard in self.shards.items():
            shard.load_(functools.partial(read, name))

    def moments(self) -> dict[str, FlatSlice]:
        """The optimizer's tensors as `moment/name`, in the pieces of this process."""
        found = {}
        for name, parameter in self._parameters().items():
            for key, value in self._state_of(parameter).items():
                found[f"{key}/{name}"] = FlatSlice(self.shards[name].local().start, value)
        return found

    def load_moments(self, saved: Collection[str], read: Reader, steps: int) -> None:
        """Take over the optimizer's tensors as they were after so many steps; `saved` names them."""
        for name, parameter in self._parameters().items():
            keys = [key for key in ("exp_avg", "exp_avg_sq", "momentum_buffer") if f"{key}/{name}" in saved]
            if not keys:
                continue
            held = self.shards[name].local()
            state = self._make_state(parameter, keys, steps)
            for key in keys:
                state[key].copy_(read(f"{key}/{name}", held.start, held.stop))

    def _state_of(self, parameter: Any) -> dict[str, Tensor]:
        """The optimizer's tensors of one parameter, flat, where this process holds them; the count of steps is none."""
        state = self.optimizer.state.get(parameter, {})
        return {key: _local(value) for key, value in state.items() if key != "step" and value is not None}

    def _make_state(self, parameter: Any, keys: list[str], steps: int) -> dict[str, Tensor]:
        state = self.optimizer.state[parameter]
        state.update({key: torch.zeros_like(parameter) for key in keys})
        if "exp_avg" in keys:
            state["step"] = torch.tensor(float(steps))
        return {key: _local(state[key]) for key in keys}


class Fsdp2Engine(Engine):
    """FSDP2: parameters, gradients and moments by rows; a block is gathered while it computes."""

    def _place(self) -> None:
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        low = torch.bfloat16 if self.world.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        for block in blocks(self.module):
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(self.module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        materialise(self.module, self.world.device)
        self._sharded = dict(self.module.named_parameters())
        self.optimizer = make_optimizer(self.module, self.spec)

    def _parameters(self) -> dict[str, Any]:
        return self._sharded

    def __call__(self, **inputs: Tensor) -> Any:
        """The model's outputs; FSDP2 itself computes in bf16 where that is asked for."""
        return self.forward(**inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add one micro-batch's share, reduced at once: no process ever holds a whole gradient."""
        (loss / self.spec.micro_batches).backward()  # type: ignore[no-untyped-call]


class ZeroEngine(Engine):
    """DeepSpeed's ZeRO-1, 2 and 3."""

    def _place(self) -> None:
        deepspeed = quiet_deepspeed(self.world)
        config = zero_config(self.world.resources, self.spec, self.world.size, self.world.device.type)
        self._stage = get_int(get_object(config, "zero_optimization"), "stage", default=0)
        if self._stage < 3:
            self.module.to(self.world.device)
        self.forward, self.optimizer, _, _ = deepspeed.initialize(
            model=self.module, optimizer=make_optimizer(self.module, self.spec), config=config
        )

    def __call__(self, **inputs: Tensor) -> Any:
        """The model's outputs; DeepSpeed itself computes in bf16 where that is asked for."""
        if self.world.precision == "bf16":
            inputs = {name: X.bfloat16() if X.is_floating_point() else X for name, X in inputs.items()}
        return self.forward(**inputs)

    def begin(self) -> None:
        """Nothing: the engine drops its gradients when it steps."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add one micro-batch's share; the engine divides and reduces."""
        self.forward.backward(loss)
        if not last:
            self.forward.step()  # counts the micro-batch, and updates nothing

    def clip(self) -> None:
        """Nothing: the engine clips when it steps."""

    def step(self, rate: float) -> None:
        """Let the engine clip and step at a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.forward.step()

    def _state_of(self, parameter: Any) -> dict[str, Tensor]:
        flat, start, count = self._range(parameter)
        if flat is None or count == 0:
            return {}
        state = self.optimizer.optimizer.state.get(flat, {})
        return {
            key: value.narrow(0, start, count)
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == flat.shape
        }

    def _make_state(self, parameter: Any, keys: list[str], steps: int) -> dict[str, Tensor]:
        flat, start, count = self._range(parameter)
        if flat is None:
            return {key: torch.empty(0) for key in keys}
        state = self.optimizer.optimizer.state[flat]
        for key in keys:
            state.setdefault(key, torch.zeros_like(flat))
        if "exp_avg" in keys:
            state["step"] = torch.tensor(float(steps))
        return {key: state[key].narrow(0, start, count) for key in keys}

    def _range(self, parameter: Any) -> tuple[Tensor | None, int, int]:
        """The flat weight of the base optimizer that a parameter's entries here are part of, and which part."""
        if self._stage == 3:
            group, start, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            held = make_shard(parameter).local()
            return self.optimizer.fp32_partitioned_groups_flat[group], start, held.flat.numel()
        mapping = parameter._hp_mapping
        if mapping is None:
            return None, 0, 0
        flat = self.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        return flat, mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel


def open_engine(model: nn.Module, spec: TrainSpec, world: World) -> Engine:
    """The model under the strategy that the resources name. Raises: `ModelRefused`."""
    if world.resources.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    strategy = world.resources.strategy
    if strategy == "fsdp2":
        return Fsdp2Engine(model, spec, world)
    if strategy.startswith("zero"):
        return ZeroEngine(model, spec, world)
    return Engine(model, spec, world)


def building(spec: TrainSpec, world: World) -> contextlib.AbstractContextManager[Any] | None:
    """The context in which a model is built as shapes alone; None where a strategy holds it whole anyway."""
    context: contextlib.AbstractContextManager[Any] | None = None
    if world.resources.strategy == "fsdp2":
        context = init_empty_weights(include_buffers=False)
    if world.resources.strategy == "zero3":
        config = zero_config(world.resources, spec, world.size, world.device.type)
        context = quiet_deepspeed(world).zero.Init(config_dict_or_path=config)
    return context


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: what its module lists hold."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for group in lists for block in group if next(block.parameters(), None) is not None]


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give tensors that are only shapes so far their storage; the others move to the device with what they hold."""
    model._apply(  # type: ignore[no-untyped-call]
        lambda X: torch.empty_like(X, device=device) if X.is_meta else X.to(device)
    )


def quiet_deepspeed(world: World) -> Any:
    """DeepSpeed as it is used here: no compiler at run time, the process group that there is, few words."""
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if world.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.init_distributed(dist_backend=dist.get_backend() if dist.is_initialized() else "gloo")
    return deepspeed


def _copied(piece: FlatSlice) -> FlatSlice:
    return FlatSlice(piece.start, piece.flat.detach().to("cpu", copy=True))


def _local(value: Any) -> Tensor:
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return local.view(-1)
