"""All uses of Ray's cluster: its hosts, devices reserved on all hosts or none, an actor on each reserved host."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import ray
from ray._private.state import available_resources_per_node
from ray.util import get_node_ip_address, placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mergenet_core.records.attempt import AttemptRef
from workers.fleet.host_actor import FleetHost
from workers.fleet.host_launchers import HostActor

Kind = Literal["GPU", "CPU"]
_PROBE_SECONDS = 2.0
_PACKAGES = Path(__file__).parents[2]
"""The folder that this package was imported from."""


@dataclass(frozen=True)
class Demand:
    """The devices that a trial needs."""

    nodes: int
    devices: int
    """Devices of each host."""
    kind: Kind

    def __str__(self) -> str:
        unit = {"GPU": "GPU", "CPU": "CPU slot"}[self.kind] + ("s" if self.devices > 1 else "")
        return f"{self.nodes} hosts with {self.devices} {unit} each"


@dataclass(frozen=True)
class HostCount:
    """How many hosts could take part in a trial."""

    large_enough: int
    """Hosts that have the devices, free or not."""
    free: int
    """Hosts on which they are free."""


class _Node(TypedDict):
    Alive: bool
    Resources: Mapping[str, float]


class _Host(FleetHost):
    def address(self) -> str:
        """The address at which the other hosts reach this one, as Ray was started with."""
        return str(get_node_ip_address())


def connect(address: str) -> str | None:
    """Join the fleet as a driver; return a sentence if that is not possible now.

    This machine must be one of the fleet's, with devices or without: a driver needs the Ray daemon of its own host.
    """
    host, _, port = address.rpartition(":")
    try:
        # Ray itself waits a minute for a head that is not there
        socket.create_connection((host, int(port)), _PROBE_SECONDS).close()
        # Ray puts the driver's working directory first on the `sys.path` of all its processes, on every host
        with contextlib.chdir(_PACKAGES):
            ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray documents no list of what it raises here
        with contextlib.suppress(Exception):
            ray.shutdown()
        return f"the fleet's head at {address} cannot be reached: {str(error).strip().splitlines()[0]}"
    return None


def demand(nodes: int, devices: int, device: str) -> Demand:
    """The devices that a job's `resources` ask for; `auto` means GPUs if the fleet has any."""
    gpus = device == "cuda" or (device == "auto" and any("GPU" in node["Resources"] for node in _alive()))
    return Demand(nodes, devices, "GPU" if gpus else "CPU")


def count_hosts(demand: Demand) -> HostCount:
    """Count the hosts that have the devices of one node of the demand."""
    total = sum(node["Resources"].get(demand.kind, 0) >= demand.devices for node in _alive())
    available: Mapping[str, Mapping[str, float]] = available_resources_per_node()
    free = sum(resources.get(demand.kind, 0) >= demand.devices for resources in available.values())
    return HostCount(total, free)


def request(demand: Demand) -> PlacementGroup:
    """Request the devices, every host's or none; they are the trial's once `wait` of the result returns true."""
    return placement_group([{demand.kind: demand.devices}] * demand.nodes, strategy="STRICT_SPREAD")


def hosts(group: PlacementGroup, demand: Demand, attempt: AttemptRef, tag: str) -> list[HostActor]:
    """Start an actor on each host of a placed group, with the host's devices."""
    resources = {"num_gpus": demand.devices, "num_cpus": 0} if demand.kind == "GPU" else {"num_cpus": demand.devices}
    return [
        ray.remote(_Host)
        .options(**resources, scheduling_strategy=PlacementGroupSchedulingStrategy(group, index))
        .remote(attempt, tag, index)
        for index in range(demand.nodes)
    ]


def release(group: PlacementGroup) -> None:
    """Free the devices; Ray kills what still runs on them."""
    remove_placement_group(group)


def _alive() -> list[_Node]:
    return [node for node in ray.nodes() if node["Alive"]]
