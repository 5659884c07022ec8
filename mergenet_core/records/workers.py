"""Workers and the devices of their hosts."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from mergenet_core.records.record import Record


class Device(Record):
    """A device of a host: a GPU, or a slot on its CPU."""

    id: str
    """Its UUID; for a slot its number."""
    name: str
    memory_bytes: int


class DeviceState(Record):
    """A device as it stands in the ledger."""

    host: str
    """The host's name."""
    ledger: str
    """What the host's ledger goes by; that of GPUs is shared by all containers on one machine."""
    id: str
    name: str
    memory_bytes: int
    state: Literal["free", "held", "quarantined"]
    holder: str | None = None
    """Job, trial, attempt and worker that hold it."""
    reason: str | None = None
    """Why it is not lent."""


class WorkerInfo(Record):
    """A worker that says it is alive."""

    name: str
    host: str
    state: Literal["idle", "busy", "draining"]
    job: str | None = None
    trial: str | None = None
    fleet: bool = False
    """It takes trials on several hosts, and no others; the devices are the fleet's."""
    device: str
    devices: tuple[Device, ...] = ()
    """All that the host has to lend; a fleet worker has none."""
    ledger: str | None = None
    """Where it is noted who holds them."""
    memory_bytes: int
    """Of the device, or of the host where it trains on CPU."""
    cpus: int
    seen_at: datetime
    versions: dict[str, str] = {}
