"""The form of a plan: what is known of a job before it runs.

`make_plan` makes one. The client and the command line only read it, so that this module imports little.
"""

from __future__ import annotations

from typing import Literal

from mergenet_core.pairing.result import Pairing
from mergenet_core.records.job import Trial
from mergenet_core.records.record import Record

Strategy = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
"""How a model is spread over the processes of a trial."""


class ProcessMemory(Record):
    """What a process needs under a strategy, in bytes; on a CPU all of it is the host's memory."""

    strategy: Strategy
    weights: int
    gradients: int
    moments: int
    """The optimizer's state, single-precision copies of the weights included."""
    buffers: int
    """Buckets of exchanges, and blocks that are gathered while they compute."""
    activations: int
    transfer: int
    """The source's factors, the adapter and its optimizer."""
    device_bytes: int
    """The peak of a step or an evaluation: less than the sum, because not all is held at once."""
    host_bytes: int
    """Runtime, the copy of the weights that were best so far, and what is offloaded."""
    exchanged: int
    """Numbers that a process sends in a step."""

    @property
    def memory_bytes(self) -> int:
        """Device and host together: what a process on a CPU needs."""
        return self.device_bytes + self.host_bytes


class Estimate(Record):
    """What the job needs of a machine, counted from shapes at the data's full length."""

    target_parameters: int | None
    source_parameters: int | None
    strategies: tuple[ProcessMemory, ...] = ()
    """A process of the most demanding trial under each strategy that the number of devices allows."""
    memory_bytes: int | None
    """Peak of a process under the job's strategy; of its GPU, where it would get one."""
    disk_bytes: int | None
    """Checkpoints, exports and the artifact, at their peak."""
    transfer_numbers: int = 0
    """Numbers that the processes of a trial exchange in one transfer, where a matrix is spread over them."""
    steps: int
    """Optimizer steps of all trials together."""

    def under(self, strategy: str) -> ProcessMemory | None:
        """What a process needs under a strategy."""
        return next((memory for memory in self.strategies if memory.strategy == strategy), None)


class Plan(Record):
    """A job's trials, its pairing, and what it needs of machines."""

    trials: tuple[Trial, ...]
    pairing: Pairing | None
    """Null where a model's shapes are only known once a worker has loaded it."""
    estimate: Estimate
    strategy: Strategy
    """How each trial's model is spread; for `auto` what was chosen by the estimate."""
    notes: tuple[str, ...] = ()
    """What a user should know of the plan: choices made, and checks that could not be made yet."""
