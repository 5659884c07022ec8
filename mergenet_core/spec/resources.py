"""The parts of a job document that describe what a trial runs on, and what stays on disk."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mergenet_core.spec.data import Strict
from mergenet_core.spec.json_values import JsonSettings


class ResourcesSpec(Strict):
    """What a trial runs on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where the worker has one."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices of one host that a trial trains on, one process each: GPUs, or the worker's CPU slots."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Hosts that a trial trains on, `devices` of each; more than one needs a fleet (extra `fleet`)."""
    strategy: Literal["auto", "single", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "auto"
    """How the model is spread over the devices; `auto` takes the fastest whose estimate fits a device's memory."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """ZeRO: keep the optimizer's state, or parameters too, in the host's memory."""
    activation_checkpointing: bool = False
    """Compute a block's activations again in the backward pass instead of storing them."""
    deepspeed: JsonSettings | None = None
    """Settings of DeepSpeed's own to merge in; keys that the service sets are refused."""

    @model_validator(mode="after")
    def _strategy_fits(self) -> Self:
        if self.strategy == "single" and self.devices * self.nodes > 1:
            raise ValueError(f"strategy single is one device; devices × nodes is {self.devices} × {self.nodes}")
        zero = self.strategy == "auto" or self.strategy.startswith("zero")
        if not zero and (self.offload != "none" or self.deepspeed is not None):
            raise ValueError(f"offload and deepspeed belong to zero1, zero2 and zero3, not to {self.strategy}")
        if self.offload == "parameters" and self.strategy not in ("auto", "zero3"):
            raise ValueError(f"offload parameters needs zero3, not {self.strategy}")
        return self

    attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """Attempts per trial when its training crashes or hangs; an error in the configuration is never retried, and lost
    workers, hosts and connections are counted apart, up to 20 per trial."""
    deadline_seconds: Annotated[int, Field(ge=1, le=10 * 366 * 86400)] | None = None
    """The job fails if it has not ended this long after its first trial began, pauses included; default: no limit."""


class RetentionSpec(Strict):
    """What stays on disk."""

    checkpoints: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of each trial's newest checkpoints are kept while the job runs."""
    keep_trials: bool = False
    """Keep every trial's last checkpoint after the job has succeeded; default: only the artifact stays."""
