"""Trials that share a host's devices: waited for with a reason, never shared, back when their holder is gone."""

from __future__ import annotations

import os
import signal

import pytest

from mergenet_core.jobs import devices, registry
from tests.harness import SOLO, Lab, document, wait


@pytest.fixture
def narrow(lab: Lab) -> Lab:
    """Two workers on a host with two slots."""
    lab.want_workers(0)
    for _ in range(2):
        lab.start_worker(MERGENET_CPU_SLOTS="2")
    wait(lambda: len(registry.workers(lab.store.redis)) == 2, "two workers", lab.explain)
    yield lab
    lab.want_workers(0)


def listing(lab: Lab) -> list[devices.DeviceState]:
    hosts = {worker.ledger for worker in registry.workers(lab.store.redis)}
    return devices.listing(lab.store.redis, sorted(host for host in hosts if host))


def wide(steps: int) -> dict:
    return document(steps=steps) | {"resources": {"devices": 2, "strategy": "ddp"}}


def test_a_trial_that_needs_all_devices_says_what_it_waits_for(narrow: Lab) -> None:
    running = narrow.submit(document())
    narrow.wait_for_checkpoint(running)
    waiting = narrow.submit(wide(4))
    reason = "needs 2 devices, 1 of 2 free, first in line"
    wait(lambda: narrow.store.get(waiting.id).trial(SOLO).reason == reason, "the reason", narrow.explain)
    assert sorted(one.state for one in listing(narrow)) == ["free", "held"]
    narrow.ask(waiting, "cancel")
    narrow.wait_for_state(waiting, "cancelled")
    narrow.ask(running, "cancel")
    narrow.wait_for_state(running, "cancelled")
    wait(lambda: {one.state for one in listing(narrow)} == {"free"}, "the devices to be back", narrow.explain)


def test_devices_of_a_killed_worker_come_back(narrow: Lab) -> None:
    job = narrow.submit(document())
    narrow.wait_for_checkpoint(job)
    holder = next(one.holder for one in listing(narrow) if one.state == "held")
    name = narrow.store.get(job.id).trial(SOLO).worker
    assert holder is not None
    assert name is not None
    os.kill(int(name.split("-")[-2]), signal.SIGKILL)
    narrow.wait_for_state(job, "succeeded", 60)
    wait(lambda: {one.state for one in listing(narrow)} == {"free"}, "the devices to be back", narrow.explain, 20)
