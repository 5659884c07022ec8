"""The processes that train one model together, one per device, and what they exchange."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from mergenet_core.errors import ModelRefused
from mergenet_core.spec.job import ResourcesSpec
from mergenet_core.training.distributed.allocator import keep_memory
from mergenet_core.training.protocols import COLLECTIVE_SECONDS

GROUPED = ("fsdp2", "zero1", "zero2", "zero3")
"""Strategies that need a process group even for one process."""
T = TypeVar("T")


class Processes(Protocol):
    """What is used of Accelerate's `Accelerator`, which has no types."""

    @property
    def num_processes(self) -> int:
        """How many processes there are."""

    @property
    def process_index(self) -> int:
        """This process's number, from 0."""

    @property
    def device(self) -> torch.device:
        """This process's device."""

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the precision that the accelerator was made for."""

    def wait_for_everyone(self) -> None:
        """Wait until every process has called this."""


@dataclass(frozen=True)
class World:
    """The processes that train together, and this process among them. With one process, exchanges do nothing."""

    accelerator: Processes
    resources: ResourcesSpec
    precision: str

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.accelerator.num_processes

    @property
    def world_rank(self) -> int:
        """This process's number, from 0."""
        return self.accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this is the process that reports, and that writes what all processes hold."""
        return self.world_rank == 0

    @property
    def strategy(self) -> str:
        """The strategy by which a model is spread over the processes; if the job leaves it open, none."""
        if self.resources.strategy != "auto":
            return self.resources.strategy
        return "single" if self.size == 1 else "ddp"

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.accelerator.device

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over all processes."""
        return self._reduced(value, dist.ReduceOp.SUM) / self.size

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        return int(self._reduced(torch.tensor(number, device=self.device), dist.ReduceOp.MAX))

    def share(self, index_b: Tensor) -> Tensor:
        """This process's share of a batch; the last entry is repeated if the batch does not divide evenly."""
        count = -(-len(index_b) // self.size)
        filled = torch.cat([index_b, index_b[-1:].expand(count * self.size - len(index_b))])
        return filled[self.world_rank * count : (self.world_rank + 1) * count]

    def gathered(self, rows_b: Tensor, count: int) -> Tensor:
        """The rows that all processes made of their shares, the first `count` of them, on the CPU."""
        if self.size == 1:
            return rows_b.cpu()
        shares = [torch.empty_like(rows_b) for _ in range(self.size)]
        dist.all_gather(shares, rows_b.contiguous())
        return torch.cat(shares)[:count].cpu()

    def from_main(self, value: T) -> T:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def from_all(self, value: T) -> list[T]:
        """Every process's value, on every process."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.accelerator.wait_for_everyone()

    def _reduced(self, value: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value, op=op)
        return value


def open_world(resources: ResourcesSpec, precision: str) -> World:
    """Join the processes that the launcher's environment names; without one, this process is alone.

    Raises: `ModelRefused` if a GPU is asked for and there is none, or if the launcher started another number of
    processes than the job asks for.
    """
    device = resources.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelRefused("resources.device is cuda but this worker sees no GPU; use auto or cpu")
    keep_memory(sharded=resources.strategy in ("fsdp2", "zero3"))
    # Accelerate keeps its state for the whole process, and the trial before may have had another precision
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    cpu = device == "cpu" or not torch.cuda.is_available()
    backend = "gloo" if cpu else "nccl"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        patience = timedelta(seconds=float(os.environ.get(COLLECTIVE_SECONDS, "600")))
        handlers = [InitProcessGroupKwargs(backend=backend, timeout=patience)]
    else:
        handlers = []
        if resources.strategy in GROUPED and not dist.is_initialized():
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    mixed = "bf16" if precision == "bf16" else "no"
    world = World(Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=handlers), resources, precision)
    wanted = resources.devices * resources.nodes
    if world.size != wanted:
        raise ModelRefused(f"resources ask for {wanted} processes, the launcher started {world.size}; start as many")
    return world
