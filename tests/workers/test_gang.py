"""What a launcher makes of what it hears: real sockets, one a process, and which of several faults is the one told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from workers.gang.launcher import _environment
from workers.gang.member import Word
from workers.gang.monitor import Gang
from workers.outcome import Outcome

COLLECTIVE = Outcome(ended="failed", code="rank-lost", message="rank 0 no longer reaches the others", retryable=True)
BUG = Outcome(ended="failed", code="internal", message="ValueError: too bad")


class Voice:
    """One process's end of its socket."""

    def __init__(self, gang: Gang, world_rank: int) -> None:
        self.gang, self.world_rank = gang, world_rank
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect("\0" + gang.address)
        self.say()

    def say(self, outcome: Outcome | None = None, moves: int = 0, step: int | None = None) -> None:
        word = Word(world_rank=self.world_rank, moves=moves, step=step, outcome=outcome)
        self.socket.send(word.model_dump_json().encode())
        self.hear()

    def die(self) -> None:
        self.socket.close()
        self.hear()

    def hear(self) -> None:
        while self.gang.listen(0):
            pass


@pytest.fixture
def gang() -> Gang:
    return Gang(2, silence_seconds=60, stall_seconds=60)


@pytest.fixture
def voices(gang: Gang) -> Iterator[tuple[Voice, Voice]]:
    both = Voice(gang, 0), Voice(gang, 1)
    yield both
    for voice in both:
        voice.socket.close()


def told(gang: Gang, *, exits: dict[int, int] | None = None, memory_ran_out: bool = False) -> Outcome:
    found = gang.outcome(exits or {}, memory_ran_out=memory_ran_out)
    assert found is not None
    return found


def test_a_failed_exchange_is_only_told_where_nobody_knows_better(gang: Gang, voices: tuple[Voice, Voice]) -> None:
    voices[0].say(COLLECTIVE)
    assert told(gang) == COLLECTIVE
    voices[1].say(BUG)
    assert told(gang) == BUG


def test_the_first_of_two_causes_is_told(gang: Gang, voices: tuple[Voice, Voice]) -> None:
    voices[1].die()
    voices[0].say(BUG)
    outcome = told(gang, exits={1: -11})
    assert f"rank 1 (process {os.getpid()}) ended by signal SIGSEGV" in outcome.message
    assert (outcome.code, outcome.retryable) == ("rank-lost", True)


def test_a_process_killed_for_memory_is_not_tried_again(gang: Gang, voices: tuple[Voice, Voice]) -> None:
    voices[1].die()
    voices[0].say(COLLECTIVE)
    outcome = told(gang, exits={1: -9}, memory_ran_out=True)
    assert (outcome.code, outcome.retryable) == ("out-of-memory", False)
    assert "rank 1" in outcome.message
    assert told(gang, exits={1: -9}).code == "rank-lost"


def test_the_word_of_the_first_process_is_told_and_all_are_let_go_together(
    gang: Gang, voices: tuple[Voice, Voice]
) -> None:
    first, second = voices
    second.say(Outcome(ended="interrupted", message="stopped at step 7, says the second"))
    second.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.socket.recv(1)
    first.say(Outcome(ended="interrupted", message="stopped at step 7"))
    assert (first.socket.recv(1), second.socket.recv(1)) == (b".", b".")
    assert told(gang).message == "stopped at step 7"
    first.die()
    second.die()
    assert gang.over
    assert gang.faults == []


def test_silence_is_one_process_and_a_stall_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 100.0
    monkeypatch.setattr("workers.gang.monitor.time.monotonic", lambda: moment)
    gang = Gang(2, silence_seconds=5, stall_seconds=20)
    first, second = Voice(gang, 0), Voice(gang, 1)
    for moves in range(6):
        moment += 4
        first.say(moves=moves, step=moves)
        second.say()  # it beats and does not move, which the other's movement excuses
    assert gang.faults == []
    for _ in range(5):
        moment += 4
        first.say(moves=5, step=5)
        second.say()
    assert gang.faults == []
    moment += 4
    first.say(moves=5, step=5)
    assert told(gang).message == "the training did not move for 20 s since step 5"
    quiet = Gang(2, silence_seconds=5, stall_seconds=20)
    third, fourth = Voice(quiet, 0), Voice(quiet, 1)
    moment += 6
    fourth.say()
    assert "rank 0" in told(quiet).message
    assert told(quiet).message.endswith("gave no sign of life for 5 s")
    third.die()


def test_a_process_that_ended_before_it_came_is_missed(gang: Gang) -> None:
    gang.count({1, 2})
    Voice(gang, 0)
    gang.count({os.getpid(), 2})
    assert gang.faults == []
    gang.count({os.getpid()})
    assert "ended before it began" in told(gang).message


def test_the_limit_of_a_collective_is_the_one_that_the_training_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergenet_core.settings import Settings
    from mergenet_core.training.protocols import COLLECTIVE_SECONDS

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = _environment(2, "address", Settings(stall_seconds=7))
    assert environment[COLLECTIVE_SECONDS] == "7.0"
    assert environment["OMP_NUM_THREADS"] == "1"
