"""What a launcher concludes from the heartbeats of its processes: real sockets, one a process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from mergenet_core.errors import RankLost
from workers.gang.launcher import rank_environment
from workers.gang.member import Heartbeat
from workers.gang.monitor import Gang
from workers.outcome import Outcome

COLLECTIVE = Outcome.of_error(RankLost("rank 0 no longer reaches the others"))
BUG = Outcome.of_exception(ValueError("too bad"), "see the log")


class Process:
    """One process's end of its socket."""

    def __init__(self, gang: Gang, world_rank: int) -> None:
        self.gang, self.world_rank = gang, world_rank
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect("\0" + gang.address)
        self.send()

    def send(self, outcome: Outcome | None = None, activity: int = 0, step: int | None = None) -> None:
        heartbeat = Heartbeat(world_rank=self.world_rank, activity=activity, step=step, outcome=outcome)
        self.socket.send(heartbeat.model_dump_json().encode())
        self.deliver()

    def die(self) -> None:
        self.socket.close()
        self.deliver()

    def deliver(self) -> None:
        while self.gang.receive(0):
            pass


@pytest.fixture
def gang() -> Gang:
    return Gang(2, silence_seconds=60, stall_seconds=60)


@pytest.fixture
def processes(gang: Gang) -> Iterator[tuple[Process, Process]]:
    both = Process(gang, 0), Process(gang, 1)
    yield both
    for process in both:
        process.socket.close()


def outcome_of(gang: Gang, *, exits: dict[int, int] | None = None, memory_ran_out: bool = False) -> Outcome:
    found = gang.outcome(exits or {}, memory_ran_out=memory_ran_out)
    assert found is not None
    return found


def test_a_failed_collective_is_reported_only_without_its_cause(gang: Gang, processes: tuple[Process, Process]) -> None:
    processes[0].send(COLLECTIVE)
    assert outcome_of(gang) == COLLECTIVE
    processes[1].send(BUG)
    assert outcome_of(gang) == BUG


def test_the_first_of_two_causes_is_reported(gang: Gang, processes: tuple[Process, Process]) -> None:
    processes[1].die()
    processes[0].send(BUG)
    outcome = outcome_of(gang, exits={1: -11})
    assert f"rank 1 (process {os.getpid()}) ended by signal SIGSEGV" in outcome.message
    assert (outcome.code, outcome.retryable) == ("rank-lost", True)


def test_a_process_killed_for_memory_is_not_retried(gang: Gang, processes: tuple[Process, Process]) -> None:
    processes[1].die()
    processes[0].send(COLLECTIVE)
    outcome = outcome_of(gang, exits={1: -9}, memory_ran_out=True)
    assert (outcome.code, outcome.retryable) == ("out-of-memory", False)
    assert "rank 1" in outcome.message
    assert outcome_of(gang, exits={1: -9}).code == "rank-lost"


def test_the_outcome_of_rank_0_is_reported_and_all_are_released_together(
    gang: Gang, processes: tuple[Process, Process]
) -> None:
    first, second = processes
    second.send(Outcome.interrupted("stopped at step 7, reported by the second"))
    second.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.socket.recv(1)
    first.send(Outcome.interrupted("stopped at step 7"))
    assert (first.socket.recv(1), second.socket.recv(1)) == (b".", b".")
    assert outcome_of(gang).message == "stopped at step 7"
    first.die()
    second.die()
    assert gang.over
    assert gang.faults == []


def test_a_process_without_heartbeats_and_a_gang_without_activity_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 100.0
    monkeypatch.setattr("workers.gang.monitor.time.monotonic", lambda: moment)
    gang = Gang(2, silence_seconds=5, stall_seconds=20)
    first, second = Process(gang, 0), Process(gang, 1)
    for activity in range(6):
        moment += 4
        first.send(activity=activity, step=activity)
        second.send()  # its heartbeats show no activity, but the other process is active
    assert gang.faults == []
    for _ in range(5):
        moment += 4
        first.send(activity=5, step=5)
        second.send()
    assert gang.faults == []
    moment += 4
    first.send(activity=5, step=5)
    assert outcome_of(gang).message == "the training did nothing for 20 s since step 5"
    quiet = Gang(2, silence_seconds=5, stall_seconds=20)
    third, fourth = Process(quiet, 0), Process(quiet, 1)
    moment += 6
    fourth.send()
    assert "rank 0" in outcome_of(quiet).message
    assert outcome_of(quiet).message.endswith("sent no heartbeat for 5 s")
    third.die()


def test_a_process_that_ended_before_it_connected_is_a_fault(gang: Gang) -> None:
    gang.check_started({1, 2})
    Process(gang, 0)
    gang.check_started({os.getpid(), 2})
    assert gang.faults == []
    gang.check_started({os.getpid()})
    assert "ended before it joined" in outcome_of(gang).message


def test_processes_get_the_limit_of_collectives_and_their_share_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mergenet_core.settings import Settings
    from mergenet_core.training.protocols import COLLECTIVE_SECONDS

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = rank_environment(2, "address", Settings(stall_seconds=7))
    assert environment[COLLECTIVE_SECONDS] == "7.0"
    assert environment["OMP_NUM_THREADS"] == "1"
