"""The GPUs that trials may use, from NVIDIA's management library; CUDA itself is not initialised."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pynvml

from mergenet_core.records.workers import Device


def gpus() -> tuple[Device, ...]:
    """This host's GPUs that CUDA_VISIBLE_DEVICES does not hide; none if there is no driver."""
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            return tuple(_visible([_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]))
        finally:
            pynvml.nvmlShutdown()
    return ()


def _gpu(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    name = str(pynvml.nvmlDeviceGetName(handle))
    return Device(id=str(pynvml.nvmlDeviceGetUUID(handle)), name=f"cuda: {name}", memory_bytes=total)


def _visible(found: list[Device]) -> Iterator[Device]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by number or by the beginning of their UUID, read as CUDA reads it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        yield from found
        return
    for word in map(str.strip, named.split(",")):
        if word.isdecimal():
            matching = found[int(word) : int(word) + 1]
        else:
            matching = [device for device in found if word and device.id.startswith(word)]
        if not matching:
            return  # CUDA ignores what follows a device that does not exist
        yield matching[0]
