"""A trial's devices on this host: leased from the host's ledger, released once nothing runs on them any more."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from mergenet_core.processes import trees
from mergenet_core.records import state_machine
from mergenet_core.records.workers import Device
from mergenet_core.store import device_leases, events
from mergenet_core.store.device_leases import Lease, Waiting
from workers.attempt import Attempt
from workers.host import capacity
from workers.processes import tagged

_ASK_SECONDS = 0.2
REAP_SECONDS = 5.0
"""A killed process is gone within this, unless the kernel itself holds it."""
_log = logging.getLogger("workers.device_lease")


def wait_for_devices(attempt: Attempt, count: int, stop: Callable[[], bool]) -> Lease | None:
    """Wait until the attempt holds `count` devices of this host; None if it is over or has to stop before.

    What an earlier holder left running on them is ended first; a device where that fails is quarantined.
    """
    known = capacity.devices(attempt.settings)
    ledger, reasons, read_at = capacity.ledger_name(known), _Reasons(attempt), 0.0
    while not attempt.over:
        now = time.monotonic()
        if now >= read_at:
            read_at = now + min(1.0, attempt.settings.lease_seconds / 5)
            job = attempt.read() if attempt.renew() else None
            if stop() or (job is not None and job.request in ("cancel", "pause")):
                break
        answer = _acquire(attempt, ledger, known, count)
        if isinstance(answer, Lease):
            if _end_previous(attempt, answer):
                reasons.clear()
                return answer
            continue
        if answer is not None:
            reasons.note(answer, count, len(known))
        time.sleep(_ASK_SECONDS)
    try:
        device_leases.leave(attempt.store.redis, ledger, attempt.tag)
    except RedisError as error:
        _log.warning("the queue for devices could not be left: %s; the entry expires by itself soon", error)
    return None


def gpu_environment(lease: Lease | None) -> dict[str, str]:
    """The environment in which a training process sees the GPUs of the lease alone; empty for slots on a CPU."""
    gpus = [device for device in lease.devices if device.startswith("GPU-")] if lease is not None else []
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}


def release(attempt: Attempt, lease: Lease) -> None:
    """End what still runs on the devices and release them; where that fails they are quarantined."""
    alive = trees.end(tagged(attempt.tag), REAP_SECONDS)
    try:
        if alive:
            device_leases.quarantine(attempt.store.redis, lease, _describe(attempt.tag, alive))
        else:
            device_leases.release(attempt.store.redis, lease)
    except RedisError as error:
        _log.warning("the devices could not be released: %s; they are free when the lease ends", error)


class _Reasons:
    """Why the attempt waits: in its record, and as an event whenever its queue position changes."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._reason: str | None = None
        self._queue_position = -1

    def note(self, waiting: Waiting, wanted: int, known: int) -> None:
        reason = waiting.describe(wanted, known)
        if reason == self._reason:
            return
        self._write(reason)
        if waiting.queue_position != self._queue_position:  # not whenever a device becomes free or held
            self._queue_position = waiting.queue_position
            with contextlib.suppress(RedisError):
                ref = self._attempt.ref
                events.add_event(self._attempt.store.redis, ref.job_id, "trial.waiting", reason, attempt=ref)

    def clear(self) -> None:
        if self._reason is not None:
            self._write(None)

    def _write(self, reason: str | None) -> None:
        self._reason = reason
        self._attempt.write(lambda job: state_machine.waits(job, self._attempt.ref, reason))


def _acquire(attempt: Attempt, ledger: str, known: tuple[Device, ...], count: int) -> Lease | Waiting | None:
    try:
        return device_leases.acquire(
            attempt.store.redis,
            ledger,
            [device.id for device in known],
            attempt.tag,
            count,
            lease_seconds=attempt.settings.lease_seconds,
            ageing_seconds=attempt.settings.ageing_seconds,
        )
    except RedisError as error:
        _log.warning("no devices can be leased: %s", error)
        return None


def _end_previous(attempt: Attempt, lease: Lease) -> bool:
    """End what earlier holders left on the devices; false where that fails, and then none of them is held."""
    clean = set(lease.devices)
    try:
        for tag in set(lease.previous_holders.values()):
            alive = trees.end(tagged(tag), REAP_SECONDS)
            if alive:
                stuck = tuple(device for device, holder in lease.previous_holders.items() if holder == tag)
                clean -= set(stuck)
                device_leases.quarantine(attempt.store.redis, _only(lease, stuck), _describe(tag, alive))
        if len(clean) < len(lease.devices) and clean:
            device_leases.release(attempt.store.redis, _only(lease, tuple(clean)))
    except RedisError as error:
        _log.warning("devices on which something still runs could not be quarantined: %s", error)
    return len(clean) == len(lease.devices)


def _only(lease: Lease, devices: tuple[str, ...]) -> Lease:
    return lease.model_copy(update={"devices": devices})


def _describe(tag: str, alive: list[int]) -> str:
    which = f"process {alive[0]}" if len(alive) == 1 else f"processes {', '.join(map(str, alive))}"
    return f"{which} of {tag} could not be ended"
