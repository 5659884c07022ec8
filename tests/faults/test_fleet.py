"""Trials on several hosts: Ray places them whole, one after the other, and a lost host is survived."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import SOLO, Lab, document, result_of
from tests.workers import fleets
from tests.workers.fleets import Fleet

pytestmark = [pytest.mark.faults, pytest.mark.slow]
STEPS = 300
HOSTS = {"resources": {"nodes": 2, "device": "cpu", "strategy": "ddp"}}


def small(steps: int = STEPS, **resources: Any) -> dict[str, Any]:
    return document(steps=steps, checkpoint_every=30) | {"resources": HOSTS["resources"] | resources}


@pytest.fixture(scope="module")
def fleet(shared_lab: Lab) -> Iterator[Fleet]:
    with fleets.fleet(shared_lab) as fleet:
        yield fleet


def test_a_job_on_two_hosts_waits_for_a_fleet_worker_and_succeeds(fleet: Fleet, lab: Lab) -> None:
    job = lab.submit(small())
    fleet.start_worker()
    job = lab.wait_for_state(job, "succeeded", seconds=120)
    assert job.trial(SOLO).attempt == 1
    print(result_of(job), (lab.settings.job_folder(job.id).log(SOLO, 1)).read_text())
