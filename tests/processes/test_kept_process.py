"""A child that is kept running: started again later each time, given up in the end, and never left behind."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from mergenet_core.errors import Unavailable
from mergenet_core.processes.kept_process import KeptProcess
from tests.harness import ended, wait
from tests.processes.scripts import ENVIRONMENT, run_script, start_script


def test_a_child_is_started_again_later_each_time_and_given_up_in_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = KeptProcess("brief", ["sh", "-c", "echo once more; exit 7"], ENVIRONMENT, log)
    child.start()
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"brief ended 4 times right after its start \(exit 7\)") as given_up:  # noqa: PT012
        while time.monotonic() < began + 30:
            child.keep_alive()
            time.sleep(0.01)
    assert time.monotonic() - began > 0.4 + 0.8 + 1.6
    assert log.read_text() == "once more\n" * 4
    assert "  once more\n  once more" in given_up.value.message


def test_without_a_log_its_output_is_that_of_its_parent(tmp_path: Path) -> None:
    done = run_script(
        """
import os, time
from mergenet_core.processes.kept_process import KeptProcess
child = KeptProcess("reader", ["sh", "-c", "read line; echo heard $line"], dict(os.environ), stdin=b"this\\n")
child.start()
while child.alive():
    time.sleep(0.01)
""",
        tmp_path,
    )
    assert done.stdout == "heard this\n", done.stderr


def test_it_is_asked_to_end_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = start_script(
        """
import os, time
from mergenet_core.processes.kept_process import KeptProcess
child = KeptProcess("sleeper", ["sleep", "1000"], dict(os.environ))
child.start()
print(child.pid, flush=True)
time.sleep(1000)
""",
        tmp_path,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    wait(lambda: ended(child), "the child's end", str, 10)
