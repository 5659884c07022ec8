"""The devices of a host, lent to trials all or nothing: who holds which, who waits, and since when.

A host's ledger is a few keys in Redis, changed by one script at a time, on Redis's clock. Waiters for the same devices
are served in the order in which they began to wait; one that needs few may pass those ahead that cannot start yet,
until one of them has waited longer than the ageing limit. A lease carries a number that only grows: an older holder can
neither prolong nor return what has been lent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from redis import Redis

from mergenet_core.records.record import Record
from mergenet_core.records.workers import Device, DeviceState, WorkerInfo

AGEING_SECONDS = 300.0
"""After so long a wait nobody passes the waiter any more."""
PATIENCE_SECONDS = 10.0
"""A waiter that has not asked for so long has gone."""
_NUMBERS = "mergenet:device-number"

# KEYS: what is lent, by device; the line; what those in it want; the last number given out
_CLOCK = """
local time = redis.call('TIME'); local now = time[1] + time[2] / 1000000
local function read(key, field) local text = redis.call('HGET', key, field); return text and cjson.decode(text) end
"""
_ACQUIRE = """
local holder, count = ARGV[1], tonumber(ARGV[2])
local lease, ageing, patience = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
for _, member in ipairs(redis.call('HKEYS', KEYS[3])) do
  if now - read(KEYS[3], member).seen > patience then
    redis.call('HDEL', KEYS[3], member); redis.call('ZREM', KEYS[2], member)
  end
end
local function is(device, what)
  local held = read(KEYS[1], device)
  if held and held.fault then return false end
  if what == 'mine' then return held and held.holder == holder and held['until'] > now and held.number end
  return what == 'usable' or not held or held['until'] <= now
end
local function those(devices, what)
  local found = {}
  for _, device in ipairs(devices) do if is(device, what) then found[#found + 1] = device end end
  return found
end
local all = {}
for i = 6, #ARGV do all[#all + 1] = ARGV[i] end
local mine, free, usable = those(all, 'mine'), those(all, 'free'), those(all, 'usable')
if #mine == count then return cjson.encode({number = is(mine[1], 'mine'), devices = mine, left = {}}) end
redis.call('ZADD', KEYS[2], 'NX', now, holder)
redis.call('HSET', KEYS[3], holder, cjson.encode({count = count, seen = now, among = all}))
local place, may, known = 0, #free >= count, {}
for _, device in ipairs(all) do known[device] = true end
for _, ahead in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if ahead == holder then break end
  local wants, shared = read(KEYS[3], ahead), false
  for _, device in ipairs(wants.among) do shared = shared or known[device] end
  if shared then
    place = place + 1
    local old = now - tonumber(redis.call('ZSCORE', KEYS[2], ahead)) > ageing
    -- who wants more than could ever be free holds nobody up
    if wants.count <= #those(wants.among, 'free') or (old and wants.count <= #those(wants.among, 'usable')) then
      may = false
    end
  end
end
if not may then return cjson.encode({place = place, free = #free, usable = #usable}) end
local number = redis.call('INCR', KEYS[4])
local taken, left = {}, {}
for i = 1, count do
  local before = read(KEYS[1], free[i])
  if before and before.holder ~= holder then left[free[i]] = before.holder end
  redis.call('HSET', KEYS[1], free[i], cjson.encode({holder = holder, number = number, ['until'] = now + lease}))
  taken[i] = free[i]
end
redis.call('ZREM', KEYS[2], holder); redis.call('HDEL', KEYS[3], holder)
return cjson.encode({number = number, devices = taken, left = left})
"""
_LEAVE = """
redis.call('ZREM', KEYS[2], ARGV[1]); redis.call('HDEL', KEYS[3], ARGV[1])
for _, device in ipairs(redis.call('HKEYS', KEYS[1])) do
  local held = read(KEYS[1], device)
  if held.holder == ARGV[1] and not held.fault then redis.call('HDEL', KEYS[1], device) end
end
"""
_CHANGE = """
local number, what, value = tonumber(ARGV[1]), ARGV[2], ARGV[3]
for i = 4, #ARGV do
  local held = read(KEYS[1], ARGV[i])
  -- what still runs on a device is known of it also when its lease has run out, unless it has been lent again
  local late = held and held['until'] <= now and what ~= 'quarantine'
  if not held or held.fault or held.number ~= number or late then return 0 end
end
for i = 4, #ARGV do
  local held = read(KEYS[1], ARGV[i])
  if what == 'renew' then held['until'] = now + tonumber(value) else held.fault = value end
  if what == 'release' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], cjson.encode(held)) end
end
return 1
"""


class Lease(Record):
    """Devices that one attempt holds, and the number that proves it."""

    ledger: str
    number: int
    devices: tuple[str, ...]
    left: dict[str, str]
    """Devices whose last holder never gave them back, and that holder; something of it may still run on them."""


class Waiting(Record):
    """Why there is no lease yet."""

    place: int
    """How many wait ahead."""
    free: int
    usable: int
    """Devices that are not quarantined."""


def acquire(
    redis: Redis,
    ledger: str,
    devices: Sequence[str],
    holder: str,
    count: int,
    *,
    lease_seconds: float,
    ageing_seconds: float = AGEING_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Lease | Waiting:
    """Take `count` of a host's devices for a holder, or take a place in the line; asking again keeps the place."""
    limits = (lease_seconds, ageing_seconds, patience_seconds)
    found = json.loads(_run(redis, ledger, _ACQUIRE, holder, count, *limits, *devices))
    if "number" not in found:
        return Waiting.model_validate(found)
    left = dict(found["left"])  # an empty table of Lua's comes as a list or as an object
    return Lease(ledger=ledger, number=found["number"], devices=tuple(found["devices"]), left=left)


def leave(redis: Redis, ledger: str, holder: str) -> None:
    """Wait no longer, and hold nothing: an answer that never arrived may have lent something."""
    _run(redis, ledger, _LEAVE, holder)


def renew(redis: Redis, lease: Lease, seconds: float) -> bool:
    """Prolong a lease; false when it has run out or another number holds one of its devices."""
    return _change(redis, lease, "renew", seconds)


def release(redis: Redis, lease: Lease) -> bool:
    """Give the devices back; false when they are no longer the lease's to give."""
    return _change(redis, lease, "release", 0)


def quarantine(redis: Redis, lease: Lease, reason: str) -> bool:
    """Lend the devices to nobody until an operator clears them; false when they have been lent again already."""
    return _change(redis, lease, "quarantine", reason)


def clear(redis: Redis, ledger: str, device: str) -> bool:
    """Lend a quarantined device again; false when it was not quarantined."""
    held = _read(cast("str | None", redis.hget(_key(ledger), device)))
    if held is None or not held.get("fault"):
        return False
    return bool(redis.hdel(_key(ledger), device))


def ledgers(workers: Iterable[WorkerInfo], host: str) -> set[str]:
    """The ledgers of a host, which is given by its name or by that of a ledger."""
    return {worker.ledger for worker in workers if worker.ledger is not None and host in (worker.host, worker.ledger)}


def listing(redis: Redis, workers: Iterable[WorkerInfo]) -> list[DeviceState]:
    """The devices that workers tell of, and who holds them now."""
    whole, micro = redis.time()
    known: dict[str, dict[str, tuple[str, Device]]] = {}
    for worker in workers:
        for device in worker.devices:
            known.setdefault(worker.ledger or worker.host, {}).setdefault(device.id, (worker.host, device))
    found = []
    for ledger, here in sorted(known.items()):
        lent = {id: json.loads(text) for id, text in cast("dict[str, str]", redis.hgetall(_key(ledger))).items()}
        found += [_state(ledger, *here[id], lent.get(id, {}), whole + micro / 1e6) for id in sorted(here, key=_order)]
    return found


def _state(ledger: str, host: str, device: Device, held: Mapping[str, Any], moment: float) -> DeviceState:
    fault = held.get("fault")
    busy = bool(held) and (fault is not None or held["until"] > moment)
    return DeviceState(
        host=host,
        ledger=ledger,
        **device.model_dump(),
        state="quarantined" if fault else "held" if busy else "free",
        holder=held["holder"] if busy else None,
        reason=fault,
    )


def _change(redis: Redis, lease: Lease, what: str, value: float | str) -> bool:
    return bool(_run(redis, lease.ledger, _CHANGE, lease.number, what, value, *lease.devices))


def _run(redis: Redis, ledger: str, script: str, *arguments: str | float) -> Any:
    keys = (_key(ledger), f"{_key(ledger)}:line", f"{_key(ledger)}:wants", _NUMBERS)
    return redis.eval(_CLOCK + script, len(keys), *keys, *map(str, arguments))


def _read(text: str | None) -> Any:
    return json.loads(text) if text else None


def _order(id: str) -> tuple[int, str]:
    return (int(id), "") if id.isdecimal() else (-1, id)


def _key(ledger: str) -> str:
    return f"mergenet:devices:{ledger}"
