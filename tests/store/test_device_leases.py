"""The ledger of a host's devices, in a real Redis: examples, then anything that holders may do in any order."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from mergenet_core.records.record import now
from mergenet_core.records.workers import Device, WorkerInfo
from mergenet_core.store import device_leases
from mergenet_core.store.device_leases import Lease, Waiting
from tests.conftest import RedisServer

LEDGER, IDS = "host", ("0", "1", "2", "3")
NEVER = 1e9


def ask(
    redis: Redis, holder: str, count: int, *, lease: float = 30.0, ageing: float = NEVER, patience: float = NEVER
) -> Lease | Waiting:
    limits = {"lease_seconds": lease, "ageing_seconds": ageing, "patience_seconds": patience}
    return device_leases.acquire(redis, LEDGER, IDS, holder, count, **limits)


def leased(redis: Redis, holder: str, count: int, *, lease: float = 30.0) -> Lease:
    answer = ask(redis, holder, count, lease=lease)
    assert isinstance(answer, Lease)
    return answer


def waiting(queue_position: int, free: int, usable: int = len(IDS)) -> Waiting:
    return Waiting(queue_position=queue_position, free=free, usable=usable)


def states(redis: Redis) -> dict[str, device_leases.DeviceState]:
    known = tuple(Device(id=one, name="slot", memory_bytes=1) for one in IDS)
    worker = WorkerInfo(
        name="w", host="name", ledger=LEDGER, state="idle", device="cpu", devices=known, memory_bytes=1, cpus=1,
        seen_at=now(),
    )  # fmt: skip
    return {one.id: one for one in device_leases.listing(redis, [worker, worker])}


def test_a_waiter_learns_why_it_waits() -> None:
    assert waiting(0, 1).describe(2, known=4) == "needs 2 devices, 1 of 4 free, position 1 in the queue"
    assert waiting(20, 0, usable=3).describe(1, known=4) == (
        "needs a device, 0 of 4 free, 1 quarantined (`mergenet workers` shows why), position 21 in the queue"
    )


def test_devices_are_leased_all_or_nothing(redis: Redis) -> None:
    first = leased(redis, "a", 3)
    assert len(set(first.devices)) == 3
    assert ask(redis, "b", 2) == waiting(0, 1)
    assert ask(redis, "a", 3) == first, "asking again, after a lost answer, gives the same lease"
    assert device_leases.release(redis, first)
    leased(redis, "b", 2)


def test_a_small_request_passes_one_that_cannot_start_until_that_one_is_old(redis: Redis) -> None:
    leased(redis, "busy", 2)
    assert ask(redis, "large", 4) == waiting(0, 2)
    leased(redis, "small", 1)
    assert ask(redis, "late", 1, ageing=0.0) == waiting(1, 1), "the large one has waited too long"
    device_leases.leave(redis, LEDGER, "large")
    assert isinstance(ask(redis, "late", 1, ageing=0.0), Lease)


def test_nobody_takes_what_the_first_in_line_could_have(redis: Redis) -> None:
    busy = leased(redis, "busy", 4)
    assert ask(redis, "first", 2) == waiting(0, 0)
    assert ask(redis, "second", 2) == waiting(1, 0)
    device_leases.release(redis, busy)
    assert ask(redis, "second", 2) == waiting(1, 4)
    leased(redis, "first", 2)
    leased(redis, "second", 2)


def test_who_wants_more_than_can_ever_be_free_holds_nobody_up(redis: Redis) -> None:
    stuck = leased(redis, "stuck", 1)
    assert ask(redis, "all", 4) == waiting(0, 3)
    assert ask(redis, "more", 5) == waiting(1, 3)
    assert ask(redis, "one", 1, ageing=0.0) == waiting(2, 3)
    assert device_leases.quarantine(redis, stuck, "process 7")
    assert isinstance(ask(redis, "one", 1, ageing=0.0), Lease), "four are not to be had while one is quarantined"


def test_containers_that_see_other_devices_of_a_machine_do_not_wait_for_each_other(redis: Redis) -> None:
    def of(holder: str, *ids: str) -> Lease | Waiting:
        return device_leases.acquire(redis, LEDGER, ids, holder, 1, lease_seconds=30, ageing_seconds=0)

    assert isinstance(of("a", "0"), Lease)
    assert of("b", "0") == waiting(0, 0, usable=1)
    assert isinstance(of("c", "1"), Lease), "b waits for another device"
    assert of("d", "0", "1") == waiting(1, 0, usable=2)


def test_a_waiter_that_no_longer_asks_holds_nobody_up(redis: Redis) -> None:
    busy = leased(redis, "busy", 4)
    assert ask(redis, "dead", 1) == waiting(0, 0)
    device_leases.release(redis, busy)
    assert ask(redis, "alive", 1) == waiting(1, 4)
    assert isinstance(ask(redis, "alive", 1, patience=0.0), Lease)


def test_an_old_number_can_neither_prolong_nor_release_what_was_leased_again(redis: Redis) -> None:
    old = leased(redis, "a", 4)
    assert device_leases.renew(redis, old, 0)  # it ends now
    assert not device_leases.renew(redis, old, 30)
    new = leased(redis, "b", 4)
    assert new.number > old.number
    assert new.previous_holders == dict.fromkeys(IDS, "a"), "the holders whose processes may still run there"
    assert not device_leases.renew(redis, old, 30)
    assert not device_leases.release(redis, old)
    assert not device_leases.quarantine(redis, old, "late")
    device_leases.leave(redis, LEDGER, "a")
    assert device_leases.renew(redis, new, 30)


def test_a_quarantined_device_is_listed_and_leased_again_once_cleared(redis: Redis) -> None:
    lease = leased(redis, "a", 1)
    assert device_leases.renew(redis, lease, 0)
    assert device_leases.quarantine(redis, lease, "process 7 cannot be ended"), "also late, as long as nobody has it"
    assert ask(redis, "b", 4) == waiting(0, 3, usable=3)
    listed = states(redis)
    assert (listed["0"].state, listed["0"].reason, listed["0"].holder) == (
        "quarantined",
        "process 7 cannot be ended",
        "a",
    )
    assert (listed["1"].state, listed["1"].host) == ("free", "name")
    assert device_leases.clear(redis, LEDGER, "0")
    assert not device_leases.clear(redis, LEDGER, "0")
    leased(redis, "b", 4)
    assert {one.holder for one in states(redis).values()} == {"b"}


def test_leaving_releases_what_was_leased_by_an_answer_that_got_lost(redis: Redis) -> None:
    leased(redis, "a", 4)
    device_leases.leave(redis, LEDGER, "a")
    leased(redis, "b", 4)


def test_many_at_once_never_hold_a_device_together(redis_server: RedisServer) -> None:
    guard, users, faults, served = threading.Lock(), dict.fromkeys(IDS, 0), [], []

    def work(name: str) -> None:
        redis, dice = redis_server.client(), random.Random(name)
        for turn in range(12):
            count = dice.randint(1, len(IDS))
            while not isinstance(lease := ask(redis, f"{name}/{turn}", count, ageing=0.1), Lease):
                time.sleep(0.001)
            with guard:
                for device in lease.devices:
                    users[device] += 1
                faults.extend(device for device in lease.devices if users[device] > 1)
            time.sleep(0.002 * dice.random())
            with guard:
                for device in lease.devices:
                    users[device] -= 1
            assert device_leases.release(redis, lease)
        served.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert sorted(served) == list("abcdef")


HOLDER = """
import sys
from redis import Redis
from mergenet_core.store import device_leases as devices
redis = Redis(unix_socket_path=sys.argv[1], decode_responses=True)
lease = devices.acquire(redis, "host", ["0", "1", "2", "3"], "sleeper", 4, lease_seconds=0.3)
print(lease.number, flush=True)
sys.stdin.readline()
print(devices.renew(redis, lease, 30), devices.quarantine(redis, lease, "x"), devices.release(redis, lease), flush=True)
"""


@pytest.fixture
def sleeper(redis_server: RedisServer) -> Iterator[subprocess.Popen[str]]:
    """A process that holds all devices, and touches the ledger again on request."""
    command = [sys.executable, "-c", HOLDER, str(redis_server.socket)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_stopped_holder_that_wakes_late_cannot_touch_the_ledger(redis: Redis, sleeper: subprocess.Popen[str]) -> None:
    assert sleeper.stdout is not None
    assert int(sleeper.stdout.readline()) > 0
    sleeper.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not isinstance(lease := ask(redis, "next", 4), Lease):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = states(redis)
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.communicate("go\n")[0].split() == ["False", "False", "False"]
    assert states(redis) == before
    assert device_leases.renew(redis, lease, 30)


class Ledger(RuleBasedStateMachine):
    """Holders that ask, prolong, return, die and wake late, against what each was promised.

    A lease that is prolonged by no time at all has run out: so nothing here waits.
    """

    server: RedisServer

    @initialize()
    def empty(self) -> None:
        self.redis = self.server.client()
        self.redis.flushall()
        self.line: list[str] = []  # in the order in which they began to wait
        self.wants: dict[str, int] = {}
        self.all: list[Lease] = []  # every lease there ever was
        self.live: dict[int, tuple[str, Lease]] = {}  # by number, those that have not run out
        self.faulty: set[str] = set()

    @property
    def free(self) -> set[str]:
        return set(IDS) - self.faulty - {device for _, lease in self.live.values() for device in lease.devices}

    @rule(holder=st.sampled_from("abcdefg"), count=st.integers(1, len(IDS)), old=st.booleans())
    def asks(self, holder: str, count: int, old: bool) -> None:
        count = self.wants.setdefault(holder, count)
        holds = next((lease for name, lease in self.live.values() if name == holder), None)
        if holds is None and holder not in self.line:
            self.line.append(holder)
        free, usable = self.free, len(IDS) - len(self.faulty)
        answer = ask(self.redis, holder, count, ageing=0.0 if old else NEVER)
        if holds is not None:
            assert isinstance(answer, Lease)
            assert (answer.number, set(answer.devices)) == (holds.number, set(holds.devices))
            return
        ahead = [self.wants[name] for name in self.line[: self.line.index(holder)]]
        if isinstance(answer, Waiting):
            assert answer == Waiting(queue_position=len(ahead), free=len(free), usable=usable)
            could = any(want <= len(free) for want in ahead) or (old and any(want <= usable for want in ahead))
            assert count > len(free) or could, "nobody waits for nothing"
            return
        assert len(set(answer.devices)) == count, "never half a lease"
        assert set(answer.devices) <= free, "no device is held twice"
        assert all(want > len(free) for want in ahead), "the first that can start is never passed"
        assert not old or all(want > usable for want in ahead), "nobody passes one that has waited too long"
        assert all(answer.number > lease.number for lease in self.all)
        self.line.remove(holder)
        self.all.append(answer)
        self.live[answer.number] = (holder, answer)

    @precondition(lambda self: self.all)
    @rule(data=st.data(), what=st.sampled_from(("renew", "expire", "release", "quarantine")))
    def touches(self, data: st.DataObject, what: str) -> None:
        lease = data.draw(st.sampled_from(self.all))
        live = lease.number in self.live
        if what in ("renew", "expire"):
            assert device_leases.renew(self.redis, lease, 30 if what == "renew" else 0) == live
        elif what == "release":
            assert device_leases.release(self.redis, lease) == live
        else:
            done = device_leases.quarantine(self.redis, lease, "it hangs")
            assert done or not live
            assert not done or live or set(lease.devices) <= self.free, "what others hold is not touched"
            if done:
                self.faulty |= set(lease.devices)
        if live and what != "renew":
            self._ended(lease.number)

    @rule(holder=st.sampled_from("abcdefg"))
    def leaves(self, holder: str) -> None:
        device_leases.leave(self.redis, LEDGER, holder)
        if holder in self.line:
            self.line.remove(holder)
            del self.wants[holder]
        for number in [number for number, (name, _) in self.live.items() if name == holder]:
            self._ended(number)

    @rule(device=st.sampled_from(IDS))
    def is_cleared(self, device: str) -> None:
        assert device_leases.clear(self.redis, LEDGER, device) == (device in self.faulty)
        self.faulty.discard(device)

    @invariant()
    def is_shown(self) -> None:
        if not hasattr(self, "redis"):
            return
        shown = {id: (one.state, one.holder if one.state == "held" else None) for id, one in states(self.redis).items()}
        held = {device: name for name, lease in self.live.values() for device in lease.devices}
        expected = {
            id: ("quarantined", None) if id in self.faulty else ("held", held[id]) if id in held else ("free", None)
            for id in IDS
        }
        assert shown == expected

    def teardown(self) -> None:
        """Whoever waits gets a turn, in order, once the devices are back."""
        if not hasattr(self, "redis"):
            return
        for device in list(self.faulty):
            self.is_cleared(device)
        for _, lease in list(self.live.values()):
            assert device_leases.release(self.redis, lease)
        for holder in self.line:
            lease = leased(self.redis, holder, self.wants[holder])
            assert device_leases.release(self.redis, lease)

    def _ended(self, number: int) -> None:
        holder, _ = self.live.pop(number)
        del self.wants[holder]


def test_the_ledger_keeps_its_promises_in_every_order_of_calls(redis_server: RedisServer) -> None:
    Ledger.server = redis_server
    limits = settings(max_examples=60, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(Ledger, settings=limits)
