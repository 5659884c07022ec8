"""Process trees are ended as a whole, however stubborn they are."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from tests.processes.scripts import run_script

STUBBORN = "trap '' TERM INT; setsid sh -c \"trap '' TERM INT; sleep 1000\" & sleep 1000"


def test_a_process_that_ignores_every_request_and_left_its_session_is_ended_too(tmp_path: Path) -> None:
    done = run_script(
        f"""
import os, time
from mergenet_core.processes import linux, trees
from mergenet_core.processes.kept_process import KeptProcess
linux.adopt_orphans()
child = KeptProcess("stubborn", ["sh", "-c", {STUBBORN!r}], dict(os.environ))
child.start()
while len(tree := trees.tree(child.pid)) < 4:
    time.sleep(0.01)
child.ask_to_end()
time.sleep(0.1)
assert child.alive()
print(*[process.pid for process in tree])
trees.end_descendants()
""",
        tmp_path,
    )
    left = []
    for pid in map(int, done.stdout.split()):
        with contextlib.suppress(psutil.Error):
            left.append(psutil.Process(pid).cmdline())
    assert left == []


def test_an_adopted_orphan_is_reaped_and_an_own_child_left_to_its_parent(tmp_path: Path) -> None:
    run_script(
        """
import os, time
from mergenet_core.processes import linux, trees
from mergenet_core.processes.kept_process import KeptProcess
linux.adopt_orphans()
own = KeptProcess("own", ["sh", "-c", "sleep 0.1 & exit 5"], dict(os.environ))
own.start()
while len(trees.tree(os.getpid())) > 1:
    own.alive()
    trees.reap_orphans({own.pid})
    time.sleep(0.01)
assert own.status == 5
""",
        tmp_path,
    )
