"""The strategy `fsdp2`: PyTorch's fully sharded data parallelism, second version."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mergenet_core.spec.job import TrainSpec
from mergenet_core.tasks.task import Outputs
from mergenet_core.training.distributed.world import World
from mergenet_core.training.engines.engine import give_axes, saved_shards
from mergenet_core.training.optim import clip_gradient, make_optimizer, new_state_of, set_rate, state_of


class Fsdp2Engine:
    """Parameters, gradients and moments sharded by rows; a block is gathered while it computes."""

    def __init__(self, model: nn.Module, spec: TrainSpec, world: World) -> None:
        self.world, self.spec, self.module = world, spec, model
        scalars = give_axes(model)
        mesh = init_device_mesh(world.device.type, (world.size,))
        low = torch.bfloat16 if world.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        for block in repeated_blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        materialise(model, world.device)
        # read here: while a block is gathered, the module lists whole tensors instead
        self.parameters = dict(model.named_parameters())
        self._optimizer = make_optimizer(model, spec)
        self.shards = saved_shards(model, self.parameters, scalars)

    def __call__(self, **inputs: Tensor) -> Outputs:
        """The model's outputs; FSDP2 itself computes in bf16 if that is the job's precision."""
        outputs: Outputs = self.module(**inputs)
        return outputs

    def train(self, mode: bool) -> None:
        """Switch training mode on or off."""
        self.module.train(mode)

    def begin(self) -> None:
        """Drop the gradients of the step before."""
        self._optimizer.zero_grad()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch, reduced at once: no process ever holds a whole gradient."""
        (loss / self.spec.micro_batches).backward()  # type: ignore[no-untyped-call]

    def clip(self) -> None:
        """Clip the norm of the whole model's gradient."""
        clip_gradient(self.module, self.spec)

    def step(self, rate: float) -> None:
        """Let the optimizer step at a learning rate."""
        set_rate(self._optimizer, rate)
        self._optimizer.step()

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        """The optimizer's tensors for this process's rows of a parameter, flat."""
        return state_of(self._optimizer, self.parameters[name])

    def new_optimizer_state(self, name: str, keys: list[str], steps: int) -> dict[str, Tensor]:
        """The named tensors of the optimizer, flat, to be filled with those after so many steps."""
        return new_state_of(self._optimizer, self.parameters[name], keys, steps)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: the entries of its module lists."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for group in lists for block in group if next(block.parameters(), None) is not None]


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give storage on the device to tensors without any (those on `meta`); move the others there with their entries."""
    model._apply(  # type: ignore[no-untyped-call]
        lambda X: torch.empty_like(X, device=device) if X.is_meta else X.to(device)
    )
