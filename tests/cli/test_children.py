"""What keeps processes from being left behind, tried on the most stubborn ones."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergenet_core.errors import Unavailable
from service.local.child_process import Child
from tests.cli.conftest import Shell

STUBBORN = "trap '' TERM INT; setsid sh -c \"trap '' TERM INT; sleep 1000\" & sleep 1000"
PARENT = f"""
import os, sys, time
from pathlib import Path
from service import children
children.adopt_orphans()
child = children.Child("stubborn", ["sh", "-c", {STUBBORN!r}], Path("log"), dict(os.environ))
child.start()
while len(children._children_of(child.pid)) < 2:
    time.sleep(0.01)
child.ask_to_end()
time.sleep(0.1)
assert child.alive()
children.end_all_descendants()
"""


def test_what_ignores_every_request_and_left_its_session_is_ended_too(shell: Shell) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", PARENT]
    done = subprocess.run(command, cwd=shell.folder, env=environment, timeout=30, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shell.processes() == {}


def test_an_adopted_orphan_is_buried_and_an_own_child_left_to_its_parent(shell: Shell) -> None:
    program = """
import os, time
from pathlib import Path
from service import children
children.adopt_orphans()
own = children.Child("own", ["sh", "-c", "sleep 0.1 & exit 5"], Path("log"), dict(os.environ))
own.start()
while children._children_of(os.getpid()):
    own.alive()
    children.reap_orphans({own.pid})
    time.sleep(0.01)
assert own._process.returncode == 5
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=shell.folder, env=environment, timeout=30, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_child_is_started_again_later_each_time_and_given_up_in_the_end(tmp_path: Path) -> None:
    child = Child("brief", ["sh", "-c", "echo once more; exit 7"], tmp_path / "log", {"PATH": "/usr/bin:/bin"})
    child.start()
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"brief ended 4 times right after its start \(exit 7\)"):  # noqa: PT012
        while time.monotonic() < began + 30:
            child.keep_alive()
            time.sleep(0.01)
    assert time.monotonic() - began > 0.4 + 0.8 + 1.6
    assert (tmp_path / "log").read_text() == "once more\n" * 4
