"""A training process that hangs is noticed by its heartbeats: real sockets, and real processes that stop or wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mergenet_core.settings import Settings
from workers.gang.member import ADDRESS, SILENCE, Heartbeat
from workers.watchdog import Watchdog

LIMITS = Settings(silence_seconds=30, stall_seconds=600)
START = "import sys, time; from workers.gang.member import Member; member = Member(); member.begin_step(); "


class Clock:
    """The time that the watchdog reads."""

    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("workers.watchdog.time.monotonic", lambda: found.now)
    return found


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    found = Watchdog(LIMITS)
    yield found
    found.close()


class Training:
    """The training process's end of the socket; every second of its clock it sends a heartbeat."""

    def __init__(self, watchdog: Watchdog, clock: Clock) -> None:
        self.watchdog, self.clock, self.cpu_seconds = watchdog, clock, 0.0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect("\0" + watchdog.address)

    def live(self, seconds: int, *, cpu_share: float, **heartbeat: float) -> str | None:
        for _ in range(seconds):
            self.clock.now += 1
            self.cpu_seconds += cpu_share
            given = {"world_rank": 0, "activity": 0, "cpu_seconds": self.cpu_seconds} | heartbeat
            self.socket.send(Heartbeat.model_validate(given).model_dump_json().encode())
            self.watchdog.check()
        return self.watchdog.fault


@pytest.fixture
def training(watchdog: Watchdog, clock: Clock) -> Iterator[Training]:
    found = Training(watchdog, clock)
    yield found
    found.socket.close()


def test_a_step_that_waits_is_a_fault_after_thirty_seconds(training: Training) -> None:
    assert training.live(30, cpu_share=0.01, step=7, stepping=True) is None
    fault = training.live(3, cpu_share=0.01, step=7, stepping=True)
    assert fault == "the training did nothing for 30 s; the last was step 7"


def test_a_step_may_take_ten_times_as_long_as_the_longest_before(training: Training) -> None:
    slow = {"step": 7, "stepping": True, "slowest_step_seconds": 20.0}
    assert training.live(198, cpu_share=0.01, **slow) is None
    assert training.live(5, cpu_share=0.01, **slow) == "the training did nothing for 200 s; the last was step 7"


def test_a_step_that_works_has_the_longer_limit(training: Training) -> None:
    assert training.live(598, cpu_share=0.9, stepping=True) is None
    fault = training.live(5, cpu_share=0.9, stepping=True)
    assert fault == "a training step did not end within 600 s; no step was finished"


def test_loading_and_evaluating_may_take_any_time_as_long_as_they_use_the_processor(training: Training) -> None:
    assert training.live(2000, cpu_share=0.2) is None
    assert training.live(598, cpu_share=0.01) is None
    assert training.live(5, cpu_share=0.01) == "the training did nothing for 600 s; no step was finished"


def test_silence_is_a_fault_also_between_steps(training: Training, watchdog: Watchdog, clock: Clock) -> None:
    assert training.live(3, cpu_share=1.0, step=2) is None
    clock.now += 31
    assert watchdog.check() == "the training process sent no heartbeat for 30 s; the last was step 2"


def test_of_a_launcher_only_silence_is_a_fault(clock: Clock) -> None:
    watchdog = Watchdog(LIMITS, launcher=True)
    launcher = Training(watchdog, clock)
    assert launcher.live(2000, cpu_share=0.01) is None
    clock.now += 31
    fault = watchdog.check()
    assert fault == "the launcher of the training processes sent no heartbeat for 30 s; no step was finished"
    launcher.socket.close()
    watchdog.close()


def test_heartbeats_that_waited_for_a_late_supervisor_count(training: Training, watchdog: Watchdog) -> None:
    training.clock.now += 100
    training.socket.send(Heartbeat(world_rank=0, activity=5).model_dump_json().encode())
    assert watchdog.check() is None


@pytest.mark.parametrize(
    ("program", "number", "fault"),
    [
        ("time.sleep(60)", None, "the training did nothing for 1 s; no step was finished"),
        ("member.active(3); time.sleep(60)", signal.SIGSTOP, "the training process sent no heartbeat for 1 s"),
    ],
)
def test_a_real_process_that_waits_or_is_stopped_is_noticed(
    program: str, number: signal.Signals | None, fault: str
) -> None:
    watchdog = Watchdog(Settings(silence_seconds=1, stall_seconds=60))
    environment = os.environ | {ADDRESS: watchdog.address, SILENCE: "1"}
    process = subprocess.Popen([sys.executable, "-c", START + program], env=environment)
    try:
        deadline = time.monotonic() + 30
        while watchdog.check() is None:
            assert time.monotonic() < deadline
            if number is not None and watchdog.last_step == 3:
                process.send_signal(number)
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        watchdog.close()
    assert str(watchdog.fault).startswith(fault)
