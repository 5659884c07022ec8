"""Starts the processes of a trial on this host, one a device, and ends them all when one is dead or hangs.

`python -m workers.gang.launcher JOB/TRIAL/NUMBER --devices 0,1` takes the place of a training process. With `--nodes`,
`--rendezvous` and `--address` there is one launcher a host. torchelastic's agent starts the processes and never
restarts them: the attempt fails, and the next attempt goes on from the newest checkpoint.
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
from workers.gang.member import ADDRESS, SILENCE, Member
from workers.gang.monitor import Gang
from workers.host import capacity, memory
from workers.logs import configure_logging
from workers.outcome import OUTCOME_FD, Outcome, send

if TYPE_CHECKING:
    from workers.gang.rank_logs import RankLogs

_TICK_SECONDS = 0.1
_CHECK_SECONDS = 0.5
_AGENT_SECONDS = 10.0
"""How long torchelastic's agent may take to end once its processes have ended."""
_LOG_SECONDS = 5.0
_log = logging.getLogger("workers.gang.launcher")


@dataclass(frozen=True)
class Placement:
    """Where the processes of a gang run."""

    devices: tuple[str, ...]
    """Devices of this host, one a process; a process uses number LOCAL_RANK of those that it can see."""
    nodes: int = 1
    rendezvous: str = "127.0.0.1:0"
    """HOST:PORT where the launchers meet; port 0 takes a free one, for a single host."""
    address: str = "127.0.0.1"
    """Address at which the other hosts reach this one."""


def main(arguments: Sequence[str], module: str = "workers.gang.rank") -> NoReturn:
    """Run the processes of this host, and send their outcome to the descriptor that the environment names."""
    signal.pthread_sigmask(signal.SIG_BLOCK, processes.BLOCKED)  # in every thread: `_watch` fetches them
    die_with(os.getppid())
    configure_logging()
    parser = argparse.ArgumentParser(prog="python -m workers.gang.launcher")
    parser.add_argument("attempt", type=AttemptRef.parse, help="JOB/TRIAL/NUMBER")
    parser.add_argument("--devices", required=True, help="ids of this host's devices, separated by commas")
    parser.add_argument("--nodes", type=int, default=Placement.nodes)
    parser.add_argument("--rendezvous", default=Placement.rendezvous)
    parser.add_argument("--address", default=Placement.address)
    given = parser.parse_args(arguments)
    if ADDRESS in os.environ:  # on several hosts the driver looks after the launchers
        Member()
    placement = Placement(tuple(given.devices.split(",")), given.nodes, given.rendezvous, given.address)
    outcome = launch(placement, given.attempt, Settings(), module)
    if outcome.ended == "failed":
        _log.error("%s: %s", outcome.code, outcome.message)
    send(int(os.environ[OUTCOME_FD]), outcome)
    # the agent's thread may still wait for a host that is gone
    os._exit(0)


def launch(placement: Placement, attempt: AttemptRef, settings: Settings, module: str) -> Outcome:
    """Start `python -m module JOB/TRIAL/NUMBER` once a device, wait until all have ended, and leave none running.

    SIGTERM and SIGUSR1, which must be blocked, are passed on.
    """
    gang = Gang(len(placement.devices), silence_seconds=settings.silence_seconds, stall_seconds=settings.stall_seconds)
    os.environ.update(rank_environment(len(placement.devices), gang.address, settings))
    kills_before = memory.kills()
    agent = _Agent(placement, str(attempt).replace("/", "-"), [module, str(attempt)], settings.stall_seconds)
    agent.start()
    try:
        stopped = _watch(gang, agent, placement, settings)
    finally:
        _kill_all()
    # all are dead; their exit statuses are known once the agent has noticed
    agent.join(_AGENT_SECONDS if gang.ranks else _TICK_SECONDS)
    agent.close()
    memory_ran_out = memory.kills() > kills_before
    if (outcome := gang.outcome(agent.exits(), memory_ran_out=memory_ran_out)) is not None:
        return outcome
    if stopped:
        return Outcome.stopped_before_training()
    reason = agent.error or "they ended without reporting an outcome"
    return Outcome.of_error(RankLost(f"the processes of the trial could not be started: {reason}"))


def _watch(gang: Gang, agent: _Agent, placement: Placement, settings: Settings) -> bool:
    """Wait until the agent and its processes have ended; return whether they were asked to stop."""
    stopped = False
    over_at: float | None = None
    checked_at = 0.0
    patience = _AGENT_SECONDS if placement.nodes == 1 else settings.stall_seconds  # other hosts may still train
    while agent.is_alive():
        gang.receive(_TICK_SECONDS)
        now = time.monotonic()
        while (received := signal.sigtimedwait(processes.BLOCKED, 0)) is not None:
            number = signal.Signals(received.si_signo)
            stopped = stopped or number == signal.SIGTERM
            gang.send(number)
        if stopped and not gang.ranks:
            return stopped
        if gang.faults and now > gang.faults[0].kill_at:
            return stopped
        if len(gang.ranks) < gang.size and not gang.faults and now > checked_at + _CHECK_SECONDS:
            checked_at = now
            gang.check_started({child.pid for child in psutil.Process().children()})
        if gang.over:
            over_at = over_at or now
            if now > over_at + patience:
                _log.warning("torchelastic's agent does not end; this process ends without it")
                break
    while gang.receive(0):  # what was sent just before the end
        pass
    return stopped


def _kill_all() -> None:
    """Kill everything else that runs for this attempt on this host."""
    me = os.getpid()
    tag = os.environ.get(processes.TAG)
    found = [*trees.tree(me), *(processes.tagged(tag) if tag else [])]
    trees.kill(process for process in found if process.pid != me)


def rank_environment(size: int, address: str, settings: Settings) -> dict[str, str]:
    """Environment of each of `size` processes on this host, which connect to the socket called `address`."""
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

    def __init__(self, placement: Placement, run_id: str, arguments: list[str], patience_seconds: float) -> None:
        super().__init__(name="agent", daemon=True)
        self._place, self._run_id, self._arguments = placement, run_id, arguments
        self._patience_seconds = patience_seconds
        self._logs: RankLogs | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Meet the other hosts, start the processes, wait for them."""
        try:
            self._launch()
        except BaseException as error:
            self.error = error

    def _launch(self) -> None:
        # not at the top: it takes seconds, and signals must be handled meanwhile
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        from workers.gang.rank_logs import RankLogs

        # it warns about this thread, and blames the process that it noticed first
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
        self._logs = RankLogs()
        placement, seconds = self._place, int(self._patience_seconds)
        config = LaunchConfig(
            min_nodes=placement.nodes,
            max_nodes=placement.nodes,
            nproc_per_node=len(placement.devices),
            run_id=self._run_id,
            rdzv_backend="c10d",
            rdzv_endpoint=placement.rendezvous,
            rdzv_configs={"timeout": seconds, "join_timeout": seconds},
            max_restarts=0,
            local_addr=placement.address,
            logs_specs=self._logs,
        )
        program, *arguments = python_command(*self._arguments)
        elastic_launch(config, program)(*arguments)

    def exits(self) -> dict[int, int]:
        """The known exit statuses other than 0, by world rank."""
        failures = getattr(self.error, "failures", {})
        return {world_rank: failure.exitcode for world_rank, failure in failures.items()}

    def close(self) -> None:
        """Copy what the processes printed last."""
        if self._logs is not None:
            self._logs.close(_LOG_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
