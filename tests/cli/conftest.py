"""The command line as a user has it: real processes in a folder with models and data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from mergenet_core.processes.command import python_command
from service.cli.commands import app
from service.client.profile import read_profile
from tests.service.conftest import job_document, write_model

MARK = "MERGENET_TEST_MARK"


@dataclass
class Shell:
    """A folder to run `mergenet` in; every process started in it, and all below them, carries a mark."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(
        self, *arguments: str, python_path: str = str(Path(__file__).parents[2]), **options: Any
    ) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MERGENET_")}
        environment |= {MARK: self.mark, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
        command = python_command("service.cli.main", *arguments)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **(streams | options))

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def call(self, *arguments: str) -> Result:
        """A command within this process, which spares the start of an interpreter."""
        with contextlib.chdir(self.folder):
            return CliRunner().invoke(app, arguments, env={"MERGENET_URL": None, "MERGENET_API_KEY": None})

    def processes(self) -> dict[int, str]:
        """Command lines of what still runs of all that was ever started here."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                marked = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                # Redis writes its title over its environment, so it is known by where it runs
                here = (entry / "cwd").resolve().is_relative_to(self.folder) and int(entry.name) != os.getpid()
                if (marked or here) and not ended:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def write(self, name: str = "job.json", **changes: Any) -> str:
        (self.folder / name).write_text(json.dumps(job_document() | changes))
        return name


def wait(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)
    return value


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    furnish(tmp_path)
    shell = Shell(tmp_path)
    yield shell
    left = shell.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, left


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A folder in which `mergenet up` runs, without a worker."""
    shell = Shell(tmp_path_factory.mktemp("up"))
    furnish(shell.folder)
    process = shell.start("up", "--port", "0", "--workers", "0")
    wait(lambda: read_profile(shell.folder / "mergenet-home"))
    yield shell
    process.terminate()
    assert process.wait(30) == 0
    assert not shell.processes()


def furnish(folder: Path) -> None:
    """A source to transfer from, and pictures of two kinds to learn."""
    write_model(folder / "models" / "mlp", [[144, 32], [32, 32]])
    for split, count in (("train", 24), ("test", 8)):
        for label, left in (("one", 0), ("zero", 6)):
            images = folder / "data" / "digits" / split / label
            images.mkdir(parents=True)
            for number in range(count):
                picture = Image.new("L", (12, 12), 10 + number)
                picture.paste(200 - number, (left, 0, left + 6, 12))
                picture.save(images / f"{number}.png")
