"""The devices of a host, lent to trials all or nothing: who holds which, who waits, and since when.

A host's ledger is three keys in Redis, changed by one script at a time, on Redis's clock. Waiters are served in the
order in which they began to wait; one that needs few devices may pass those ahead that cannot start yet, until one of
them has waited longer than the ageing limit. A lease carries a number that only grows: an older holder can neither
prolong nor return what has been lent again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, cast

from redis import Redis

from mergenet_core.jobs.records import Record

AGEING_SECONDS = 300.0
"""After so long a wait nobody passes the waiter any more."""
_PATIENCE_SECONDS = 10.0
"""A waiter that has not asked for so long has gone."""
_NUMBERS = "mergenet:device-number"
_HOSTS = "mergenet:device-hosts"

_ACQUIRE = """
local time = redis.call('TIME'); local now = time[1] + time[2] / 1000000
local holder, count = ARGV[1], tonumber(ARGV[2])
local lease, ageing, patience = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
for member, text in (function(all) local i = -1 return function() i = i + 2 return all[i], all[i + 1] end end)(
    redis.call('HGETALL', KEYS[3])) do
  if now - cjson.decode(text).seen > patience then
    redis.call('HDEL', KEYS[3], member); redis.call('ZREM', KEYS[2], member)
  end
end
local free, mine, number = {}, {}, 0
for i = 6, #ARGV do
  local text = redis.call('HGET', KEYS[1], ARGV[i])
  local held = text and cjson.decode(text)
  if held and held.fault then held = held
  elseif held and held.holder == holder and held['until'] > now then mine[#mine + 1] = ARGV[i]; number = held.number
  elseif not held or held['until'] <= now then free[#free + 1] = ARGV[i] end
end
if #mine >= count and count > 0 then return {number, 0, #free, unpack(mine)} end
redis.call('ZADD', KEYS[2], 'NX', now, holder)
redis.call('HSET', KEYS[3], holder, cjson.encode({count = count, seen = now}))
local place = redis.call('ZRANK', KEYS[2], holder)
local may = #free >= count
for _, ahead in ipairs(redis.call('ZRANGE', KEYS[2], 0, place - 1)) do
  if place == 0 then break end
  local text = redis.call('HGET', KEYS[3], ahead)
  local wants = text and cjson.decode(text).count or 0
  local since = tonumber(redis.call('ZSCORE', KEYS[2], ahead))
  if wants <= #free or now - since > ageing then may = false end
end
if not may then return {0, place, #free} end
number = redis.call('INCR', KEYS[4])
local taken = {}
for i = 1, count do
  redis.call('HSET', KEYS[1], free[i], cjson.encode({holder = holder, number = number, ['until'] = now + lease}))
  taken[i] = free[i]
end
redis.call('ZREM', KEYS[2], holder); redis.call('HDEL', KEYS[3], holder)
return {number, 0, #free - count, unpack(taken)}
"""
_CHANGE = """
local time = redis.call('TIME'); local now = time[1] + time[2] / 1000000
for i = 4, #ARGV do
  local text = redis.call('HGET', KEYS[1], ARGV[i])
  local held = text and cjson.decode(text)
  if not held or held.fault or held.number ~= tonumber(ARGV[1]) or held['until'] <= now then return 0 end
end
for i = 4, #ARGV do
  if ARGV[2] == 'release' then redis.call('HDEL', KEYS[1], ARGV[i])
  else
    local held = cjson.decode(redis.call('HGET', KEYS[1], ARGV[i]))
    if ARGV[2] == 'renew' then held['until'] = now + tonumber(ARGV[3]) else held.fault = ARGV[3] end
    redis.call('HSET', KEYS[1], ARGV[i], cjson.encode(held))
  end
end
return 1
"""


class Device(Record):
    """A device of a host: a GPU, or a slot on its CPU."""

    id: str
    """Its UUID; for a slot its number."""
    name: str
    memory_bytes: int


class DeviceState(Record):
    """A device as it stands in the ledger."""

    host: str
    id: str
    name: str
    memory_bytes: int
    state: Literal["free", "held", "quarantined"]
    holder: str | None = None
    """Job, trial and attempt that hold it."""
    reason: str | None = None
    """Why it is not lent."""


class Lease(Record):
    """Devices that one attempt holds, and the number that proves it."""

    host: str
    number: int
    devices: tuple[str, ...]


class Waiting(Record):
    """Why there is no lease yet."""

    place: int
    """How many wait ahead."""
    free: int


def announce(redis: Redis, host: str, devices: Sequence[Device]) -> None:
    """Say which devices a host has; every worker of it says the same."""
    redis.hset(_HOSTS, host, json.dumps([device.model_dump() for device in devices]))


def acquire(
    redis: Redis,
    host: str,
    devices: Sequence[str],
    holder: str,
    count: int,
    *,
    lease_seconds: float,
    ageing_seconds: float = AGEING_SECONDS,
) -> Lease | Waiting:
    """Take `count` of a host's devices for a holder, or take a place in the line; asking again keeps the place."""
    arguments = [holder, str(count), str(lease_seconds), str(ageing_seconds), str(_PATIENCE_SECONDS), *devices]
    keys = [_ledger(host), f"{_ledger(host)}:waiting", f"{_ledger(host)}:wants", _NUMBERS]
    number, place, free, *taken = cast("list[int | str]", redis.eval(_ACQUIRE, len(keys), *keys, *arguments))
    if not number:
        return Waiting(place=int(place), free=int(free))
    return Lease(host=host, number=int(number), devices=tuple(str(device) for device in taken))


def leave(redis: Redis, host: str, holder: str) -> None:
    """Wait no longer."""
    redis.zrem(f"{_ledger(host)}:waiting", holder)
    redis.hdel(f"{_ledger(host)}:wants", holder)


def renew(redis: Redis, lease: Lease, seconds: float) -> bool:
    """Prolong a lease; false when it has run out or another number holds one of its devices."""
    return _change(redis, lease, "renew", seconds)


def release(redis: Redis, lease: Lease) -> bool:
    """Give the devices back; false when they are no longer the lease's to give."""
    return _change(redis, lease, "release", 0)


def quarantine(redis: Redis, lease: Lease, reason: str) -> bool:
    """Lend the devices to nobody until an operator clears them, because of what still runs on them."""
    return _change(redis, lease, "quarantine", reason)


def clear(redis: Redis, host: str, device: str) -> bool:
    """Lend a quarantined device again; false when it was not quarantined."""
    held = _read(cast("str | None", redis.hget(_ledger(host), device)))
    if held is None or not held.get("fault"):
        return False
    redis.hdel(_ledger(host), device)
    return True


def listing(redis: Redis, hosts: Sequence[str]) -> list[DeviceState]:
    """The devices of hosts, and who holds them now."""
    whole, micro = redis.time()
    moment, found = whole + micro / 1e6, []
    for host in hosts:
        ledger = cast("dict[str, str]", redis.hgetall(_ledger(host)))
        for device in json.loads(cast("str | None", redis.hget(_HOSTS, host)) or "[]"):
            held = _read(ledger.get(device["id"])) or {}
            fault = held.get("fault")
            busy = bool(held) and (fault or held["until"] > moment)
            found.append(
                DeviceState(
                    host=host,
                    **device,
                    state="quarantined" if fault else "held" if busy else "free",
                    holder=held.get("holder") if busy else None,
                    reason=fault,
                )
            )
    return found


def _change(redis: Redis, lease: Lease, what: str, value: float | str) -> bool:
    return bool(redis.eval(_CHANGE, 1, _ledger(lease.host), lease.number, what, value, *lease.devices))


def _read(text: str | None) -> Any:
    return json.loads(text) if text else None


def _ledger(host: str) -> str:
    return f"mergenet:devices:{host}"
