"""Where and in which arithmetic a trial runs. Only this file knows how processes and devices are set up."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mergenet_core.errors import ModelRefused


def open_accelerator(device: str, precision: str) -> Accelerator:
    """One process on one device. `device` is `auto`, `cpu` or `cuda`; `precision` is `fp32` or `bf16`.

    Raises: `ModelRefused` when a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelRefused("resources.device is cuda but this worker sees no GPU; use auto or cpu")
    # Accelerate keeps its state for the whole process, and the trial before may have had another precision
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    cpu = device == "cpu" or not torch.cuda.is_available()
    return Accelerator(cpu=cpu, mixed_precision="bf16" if precision == "bf16" else "no")
