"""A fleet that is not set up correctly is refused at its start, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "fleet" / "host.sh"
READY = {"MERGENET_RAY_ADDRESS": "127.0.0.1:1", "MERGENET_FLEET_HOST": "127.0.0.1", "RAY_AUTH_TOKEN": "secret"}


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run(command, env=bare | environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("missing", list(READY))
def test_a_host_without_an_address_or_a_token_does_not_start(missing: str) -> None:
    found = run(["sh", str(SCRIPT), "node"], {name: value for name, value in READY.items() if name != missing})
    assert found.returncode != 0
    assert missing in found.stderr


def test_a_host_is_a_head_or_a_node() -> None:
    assert "'queen' is not head, node or health" in run(["sh", str(SCRIPT), "queen"], READY).stderr


@pytest.mark.parametrize("missing", ["MERGENET_RAY_ADDRESS", "RAY_AUTH_TOKEN"])
def test_a_fleet_worker_without_an_address_or_a_token_does_not_start(missing: str) -> None:
    pytest.importorskip("ray", reason="a fleet needs Ray: install the extra `fleet`")
    environment = {name: value for name, value in READY.items() if name != missing}
    found = run([sys.executable, "-m", "workers", "--fleet"], environment)
    assert found.returncode == 1
    assert found.stderr.startswith("set ")
    assert missing in found.stderr
