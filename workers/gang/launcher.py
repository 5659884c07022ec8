"""Starts the processes of a trial on this host, a process a device, and ends them all when one is dead or hangs.

`python -m workers.gang.launcher JOB/TRIAL/NUMBER --devices 0,1`, started by the supervisor in place of a training
process;
with `--nodes`, `--rendezvous` and `--address`, one launcher a host. torchelastic's agent starts the processes and never
starts them again: the attempt fails, and the record's own retry goes on from the newest checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import psutil

from mergenet_core.errors import RankLost
from mergenet_core.processes import trees
from mergenet_core.processes.command import python_command
from mergenet_core.processes.linux import die_with
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.settings import Settings
from mergenet_core.training.protocols import COLLECTIVE_SECONDS
from workers import processes
from workers.gang.member import ADDRESS, SILENCE
from workers.gang.monitor import Gang
from workers.host import capacity
from workers.outcome import Outcome, failed, send
from workers.trial import OUTCOME_FD

if TYPE_CHECKING:
    from workers.gang.rank_logs import RankLogs

_TICK_SECONDS = 0.1
_LOOK_SECONDS = 0.5
_AGENT_SECONDS = 10.0
"""What torchelastic's agent gets to end by itself when its processes have."""
_LOG_SECONDS = 5.0
_log = logging.getLogger("workers.gang.launcher")


@dataclass(frozen=True)
class Place:
    """Where a gang runs."""

    devices: tuple[str, ...]
    """Devices of this host, a process each; a process finds its own as number LOCAL_RANK of those it can see."""
    nodes: int = 1
    rendezvous: str = "127.0.0.1:0"
    """HOST:PORT where the launchers meet; port 0 takes a free one, for a single host."""
    address: str = "127.0.0.1"
    """This host as the others reach it."""


def main(arguments: Sequence[str], module: str = "workers.gang.rank") -> NoReturn:
    """Run the gang's part on this host and send its outcome to the descriptor that the environment names."""
    signal.pthread_sigmask(signal.SIG_BLOCK, processes.HELD)  # every thread's: they are asked for, never delivered
    die_with(os.getppid())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(prog="python -m workers.gang.launcher")
    parser.add_argument("attempt", type=AttemptRef.parse, help="JOB/TRIAL/NUMBER")
    parser.add_argument("--devices", required=True, help="ids of this host's devices, separated by commas")
    parser.add_argument("--nodes", type=int, default=Place.nodes)
    parser.add_argument("--rendezvous", default=Place.rendezvous)
    parser.add_argument("--address", default=Place.address)
    given = parser.parse_args(arguments)
    place = Place(tuple(given.devices.split(",")), given.nodes, given.rendezvous, given.address)
    outcome = launch(place, given.attempt, Settings(), module)
    if outcome.ended == "failed":
        _log.error("%s: %s", outcome.code, outcome.message)
    send(int(os.environ[OUTCOME_FD]), outcome)
    # the agent's thread may still wait for a host that is gone
    os._exit(0)


def launch(place: Place, attempt: AttemptRef, settings: Settings, module: str) -> Outcome:
    """Start `python -m module JOB/TRIAL/NUMBER` once a device, and stay until all have ended.

    SIGTERM and SIGUSR1, which must be blocked, are passed on. Nothing is left running.
    """
    gang = Gang(len(place.devices), silence_seconds=settings.silence_seconds, stall_seconds=settings.stall_seconds)
    os.environ.update(_environment(len(place.devices), gang.address, settings))
    kills_before = processes.memory_kills()
    agent = _Agent(place, str(attempt).replace("/", "-"), [module, str(attempt)], settings.stall_seconds)
    agent.start()
    try:
        stopped = _watch(gang, agent, place, settings)
    finally:
        _end_all()
    # all are dead: what they were ended with is known as soon as the agent has looked
    agent.join(_AGENT_SECONDS if gang.ranks else _TICK_SECONDS)
    agent.close()
    memory_ran_out = processes.memory_kills() > kills_before
    if (outcome := gang.outcome(agent.exits(), memory_ran_out=memory_ran_out)) is not None:
        return outcome
    if stopped:
        return Outcome(ended="interrupted", message="stopped on request before the training began")
    message = f"the processes of the trial could not be started: {agent.error or 'they ended without a word'}"
    return failed(RankLost.code, message, retryable=True)


def _watch(gang: Gang, agent: _Agent, place: Place, settings: Settings) -> bool:
    """Stay until the agent and its processes have ended; returns whether they were asked to."""
    stopped = False
    over_at: float | None = None
    looked_at = 0.0
    patience = _AGENT_SECONDS if place.nodes == 1 else settings.stall_seconds  # other hosts may still train
    while agent.is_alive():
        gang.listen(_TICK_SECONDS)
        moment = time.monotonic()
        while (heard := signal.sigtimedwait(processes.HELD, 0)) is not None:
            number = signal.Signals(heard.si_signo)
            stopped = stopped or number == signal.SIGTERM
            gang.send(number)
        if stopped and not gang.ranks:
            return stopped
        if gang.faults and moment > gang.faults[0].kill_at:
            return stopped
        if len(gang.ranks) < gang.size and not gang.faults and moment > looked_at + _LOOK_SECONDS:
            looked_at = moment
            gang.count({child.pid for child in psutil.Process().children()})
        if gang.over:
            over_at = over_at or moment
            if moment > over_at + patience:
                _log.warning("torchelastic's agent does not end; it is left")
                break
    while gang.listen(0):  # what was said in the last moment
        pass
    return stopped


def _end_all() -> None:
    me = os.getpid()
    mark = os.environ.get(processes.MARK)
    marked = processes.marked(mark) if mark else []
    found = {process.pid: process for process in [*psutil.Process().children(recursive=True), *marked]}
    trees.kill(process for pid, process in found.items() if pid != me)


def _environment(size: int, address: str, settings: Settings) -> dict[str, str]:
    threads = str(max(1, int(os.environ.get("OMP_NUM_THREADS") or capacity.cpus()) // size))
    return {
        ADDRESS: address,
        SILENCE: str(settings.silence_seconds),
        COLLECTIVE_SECONDS: str(settings.stall_seconds),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # a store that outlives its processes gives later ones the addresses of the dead
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


class _Agent(threading.Thread):
    """torchelastic's agent in a thread of its own, so that its signal handlers stay out of this process."""

    def __init__(self, place: Place, run_id: str, words: list[str], patience_seconds: float) -> None:
        super().__init__(name="agent", daemon=True)
        self._place, self._run_id, self._words, self._patience_seconds = place, run_id, words, patience_seconds
        self._logs: RankLogs | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Meet the other hosts, start the processes, wait for them."""
        try:
            self._launch()
        except BaseException as error:
            self.error = error

    def _launch(self) -> None:
        # not at the top: seconds, in which a signal is to be heard already
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        from workers.gang.rank_logs import RankLogs

        # it warns of this very thread, and names the process it saw first as the one that failed
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
        self._logs = RankLogs()
        place, seconds = self._place, int(self._patience_seconds)
        config = LaunchConfig(
            min_nodes=place.nodes,
            max_nodes=place.nodes,
            nproc_per_node=len(place.devices),
            run_id=self._run_id,
            rdzv_backend="c10d",
            rdzv_endpoint=place.rendezvous,
            rdzv_configs={"timeout": seconds, "join_timeout": seconds},
            max_restarts=0,
            local_addr=place.address,
            logs_specs=self._logs,
        )
        program, *arguments = python_command(*self._words)
        elastic_launch(config, program)(*arguments)

    def exits(self) -> dict[int, int]:
        """Exit statuses other than 0 by world rank, as far as they are known."""
        failures = getattr(self.error, "failures", {})
        return {world_rank: failure.exitcode for world_rank, failure in failures.items()}

    def close(self) -> None:
        """Copy the last that was printed."""
        if self._logs is not None:
            self._logs.close(_LOG_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
