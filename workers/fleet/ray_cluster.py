"""All that is asked of Ray: who is there, a group of devices held whole or not at all, an actor on each host of it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray._private.state import available_resources_per_node
from ray.util import get_node_ip_address, placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mergenet_core.records.attempt import AttemptRef
from workers.fleet.host_actor import FleetHost

Kind = Literal["GPU", "CPU"]
_PROBE_SECONDS = 2.0
_PACKAGES = Path(__file__).parents[2]
"""The folder that this package was imported from."""


@dataclass(frozen=True)
class Want:
    """What a trial needs of a fleet."""

    nodes: int
    devices: int
    """Of each host."""
    kind: Kind

    def __str__(self) -> str:
        return f"{self.nodes} hosts with {self.devices} {_devices(self.kind, self.devices)} each"


class _Host(FleetHost):
    """What runs on a host, and where that is."""

    def address(self) -> str:
        """At which the other hosts reach it, as Ray was told."""
        return str(get_node_ip_address())


def connect(address: str) -> str | None:
    """Join the fleet as a driver; a sentence where that does not work just now.

    This machine must be one of the fleet's, devices or not: Ray's drivers speak through their own host's daemon.
    """
    host, _, port = address.rpartition(":")
    try:
        # Ray itself waits a minute for a head that is not there
        socket.create_connection((host, int(port)), _PROBE_SECONDS).close()
        # Ray puts the driver's working directory first on the `sys.path` of all its processes, on every host
        with contextlib.chdir(_PACKAGES):
            ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises what it likes here
        with contextlib.suppress(Exception):
            ray.shutdown()
        return f"the fleet's head at {address} cannot be reached: {str(error).strip().splitlines()[0]}"
    return None


def want(nodes: int, devices: int, device: str) -> Want:
    """What a job's `resources` ask for; `auto` means GPUs wherever the fleet has any."""
    gpus = device == "cuda" or (device == "auto" and any("GPU" in node["Resources"] for node in _alive()))
    return Want(nodes, devices, "GPU" if gpus else "CPU")


def census(want: Want) -> tuple[int, int]:
    """How many hosts have so many devices at all, and how many have them free."""
    total = sum(node["Resources"].get(want.kind, 0) >= want.devices for node in _alive())
    free: Mapping[str, Mapping[str, float]] = available_resources_per_node()
    return total, sum(resources.get(want.kind, 0) >= want.devices for resources in free.values())


def ask(want: Want) -> PlacementGroup:
    """Ask for the devices, every host's or none; they are the trial's as soon as `wait` says so."""
    return placement_group([{want.kind: want.devices}] * want.nodes, strategy="STRICT_SPREAD")


def hosts(group: PlacementGroup, want: Want, attempt: AttemptRef, mark: str) -> list[Any]:
    """An actor on each host of a placed group, holding its devices."""
    lent = {"num_gpus": want.devices, "num_cpus": 0} if want.kind == "GPU" else {"num_cpus": want.devices}
    return [
        ray.remote(_Host)
        .options(**lent, scheduling_strategy=PlacementGroupSchedulingStrategy(group, place))
        .remote(attempt, mark, place)
        for place in range(want.nodes)
    ]


def give_back(group: PlacementGroup) -> None:
    """Free the devices; Ray kills what still runs on them."""
    remove_placement_group(group)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _devices(kind: Kind, count: int) -> str:
    return {"GPU": "GPU", "CPU": "CPU slot"}[kind] + ("s" if count > 1 else "")
