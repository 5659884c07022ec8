import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergenet_core.jobs import devices
from mergenet_core.jobs.devices import Device, Lease, Waiting

HOST, IDS = "host", ("0", "1", "2", "3")


@pytest.fixture
def redis(redis_server):
    return redis_server.client()


def ask(redis, holder, count, *, lease=30.0, ageing=300.0):
    return devices.acquire(redis, HOST, IDS, holder, count, lease_seconds=lease, ageing_seconds=ageing)


def test_devices_are_lent_all_or_nothing(redis):
    first = ask(redis, "a", 3)
    assert isinstance(first, Lease)
    assert len(set(first.devices)) == 3
    assert ask(redis, "b", 2) == Waiting(place=0, free=1)
    assert ask(redis, "a", 3) == first, "asking again, after a lost answer, gives the same lease"
    assert devices.release(redis, first)
    assert isinstance(ask(redis, "b", 2), Lease)


def test_a_small_request_passes_one_that_cannot_start_until_that_one_is_old(redis):
    ask(redis, "busy", 2)
    assert ask(redis, "large", 4) == Waiting(place=0, free=2)
    small = ask(redis, "small", 1)
    assert isinstance(small, Lease)
    assert ask(redis, "late", 1, ageing=0.0) == Waiting(place=1, free=1), "the large one has waited too long"
    devices.leave(redis, HOST, "large")
    assert isinstance(ask(redis, "late", 1, ageing=0.0), Lease)


def test_nobody_takes_what_the_first_in_line_could_have(redis):
    busy = ask(redis, "busy", 4)
    assert ask(redis, "first", 2) == Waiting(place=0, free=0)
    assert ask(redis, "second", 2) == Waiting(place=1, free=0)
    devices.release(redis, busy)
    assert ask(redis, "second", 2) == Waiting(place=1, free=4)
    assert isinstance(ask(redis, "first", 2), Lease)
    assert isinstance(ask(redis, "second", 2), Lease)


def test_an_old_number_can_neither_prolong_nor_return_what_was_lent_again(redis):
    old = ask(redis, "a", 4, lease=0.05)
    time.sleep(0.1)
    assert not devices.renew(redis, old, 30)
    new = ask(redis, "b", 4)
    assert new.number > old.number
    assert not devices.renew(redis, old, 30)
    assert not devices.release(redis, old)
    assert not devices.quarantine(redis, old, "late")
    assert devices.renew(redis, new, 30)


def test_a_quarantined_device_is_shown_and_lent_again_once_cleared(redis):
    devices.announce(redis, HOST, [Device(id=one, name="slot", memory_bytes=1) for one in IDS])
    lease = ask(redis, "a", 1)
    assert devices.quarantine(redis, lease, "process 7 cannot be ended")
    assert ask(redis, "b", 4) == Waiting(place=0, free=3)
    listed = {one.id: one for one in devices.listing(redis, [HOST])}
    assert (listed["0"].state, listed["0"].reason) == ("quarantined", "process 7 cannot be ended")
    assert listed["1"].state == "free"
    assert devices.clear(redis, HOST, "0")
    assert not devices.clear(redis, HOST, "0")
    assert isinstance(ask(redis, "b", 4), Lease)
    assert {one.holder for one in devices.listing(redis, [HOST])} == {"b"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 4), st.booleans()), max_size=30))
def test_no_device_is_ever_held_twice_and_everyone_gets_a_turn(redis_server, moves):
    redis = redis_server.client()
    redis.flushall()
    held, wants = {}, {}
    for holder, count, give_back in moves:
        if give_back and holder in held:
            assert devices.release(redis, held.pop(holder))
        elif holder not in held:
            wants.setdefault(holder, count)
            answer = ask(redis, holder, wants[holder])
            if isinstance(answer, Lease):
                assert len(answer.devices) == wants.pop(holder)
                held[holder] = answer
        lent = [device for lease in held.values() for device in lease.devices]
        assert len(lent) == len(set(lent))
    for lease in held.values():
        assert devices.release(redis, lease)
    while wants:
        served = [holder for holder, count in wants.items() if isinstance(ask(redis, holder, count), Lease)]
        assert served
        for holder in served:
            assert devices.release(redis, ask(redis, holder, wants.pop(holder)))
