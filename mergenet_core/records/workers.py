"""Workers and the devices of their hosts."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from mergenet_core.records.record import Record


class Device(Record):
    """A device of a host: a GPU, or a slot on its CPU."""

    id: str
    """The UUID of a GPU, the number of a slot."""
    name: str
    memory_bytes: int


class DeviceState(Record):
    """A device with its entry in the ledger of its host."""

    host: str
    """The host's name."""
    ledger: str
    """Name of the host's ledger; all containers on one machine share that of its GPUs."""
    id: str
    name: str
    memory_bytes: int
    state: Literal["free", "held", "quarantined"]
    holder: str | None = None
    """Job, trial, attempt and worker that hold it."""
    reason: str | None = None
    """Why the device is quarantined."""


class WorkerInfo(Record):
    """A worker, as it last reported itself."""

    name: str
    host: str
    state: Literal["idle", "busy", "draining"]
    job: str | None = None
    trial: str | None = None
    fleet: bool = False
    """Whether it takes trials on several hosts, and no others; their devices are the fleet's."""
    device: str
    devices: tuple[Device, ...] = ()
    """All devices of the host; none for a fleet worker."""
    ledger: str | None = None
    """Name of the ledger of these devices."""
    memory_bytes: int
    """Memory of a device, or of the host where trials run on its CPU."""
    cpus: int
    seen_at: datetime
    versions: dict[str, str] = {}
