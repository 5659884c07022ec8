"""The service on one machine: it starts, restarts what ends, and leaves no process behind, whenever it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess

import pytest

from service.client import Client
from service.client.profile import read_profile
from tests.cli.conftest import Shell, wait


def up(shell: Shell, *options: str) -> subprocess.Popen[str]:
    process = shell.start("up", "--port", "0", *options)
    wait(lambda: read_profile(shell.folder / "mergenet-home") or process.poll() is not None)
    return process


def pid_of(shell: Shell, words: str) -> int:
    """The process whose command line holds these words."""
    return int(wait(lambda: next((pid for pid, line in shell.processes().items() if words in line), None)))


def test_run_does_everything_and_leaves_the_result(shell: Shell) -> None:
    answer = shell.run("run", shell.write(train={"steps": 6, "batch_size": 8}), "--out", "result", timeout=240)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"\| transfer +\|", answer.stdout)
    assert "their SHA-256 hashes match" in answer.stdout
    report = json.loads((shell.folder / "result" / "report.json").read_text())
    assert report["chosen"] == "transfer-0"
    assert (shell.folder / "result" / "model" / "model.safetensors").is_file()
    assert "\x1b" not in answer.stdout  # no colours where there is no terminal


def test_run_of_a_bad_document_exits_with_2_and_starts_nothing(shell: Shell) -> None:
    answer = shell.run("run", shell.write(trian={}))
    assert (answer.returncode, "did you mean train?" in answer.stderr) == (2, True)
    assert not (shell.folder / "mergenet-home").exists()


@pytest.mark.parametrize(
    ("seconds", "twice"), [(0.3, False), (1.0, True), (1.5, False), (2.5, True), (4.0, False), (6.0, True)]
)
def test_ctrl_c_at_any_moment_leaves_no_process(shell: Shell, seconds: float, twice: bool) -> None:
    process = shell.start("run", shell.write(train={"steps": 100_000, "batch_size": 8}))
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        if twice:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode in (130, -signal.SIGINT, -signal.SIGTERM), out + err
    assert not shell.processes()


def test_an_interrupted_run_goes_on_with_the_same_job(shell: Shell) -> None:
    document = shell.write(train={"steps": 400, "batch_size": 8, "checkpoint_every": 5})
    first = shell.start("run", document)
    assert first.stdout is not None
    lines = iter(first.stdout.readline, "")
    job_id = next(line for line in lines if "is job" in line).split()[-1]
    next(line for line in lines if "checkpoint at step" in line)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=100)
    assert not shell.processes()
    second = shell.start("run", document)
    assert second.stdout is not None
    assert next(iter(second.stdout.readline, "")).split()[:3] == ["Continuing", "job", f"{job_id},"]
    next(line for line in iter(second.stdout.readline, "") if "checkpoint at step" in line)
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=100)


def test_nothing_outlives_an_up_that_is_killed(shell: Shell) -> None:
    process = up(shell)
    assert len(shell.processes()) >= 4
    process.kill()
    process.wait()
    wait(lambda: not shell.processes(), 30)


def test_commands_do_not_look_for_a_service_that_has_stopped_and_its_key_stays_valid(shell: Shell) -> None:
    home = shell.folder / "mergenet-home"
    process = up(shell, "--workers", "0")
    running = read_profile(home)
    assert running is not None
    process.terminate()
    assert process.wait(60) == 0
    assert read_profile(home) is None
    assert shell.call("validate", shell.write()).exit_code == 0, "validated on this machine"
    assert "no service found" in shell.call("status").stderr
    process = up(shell, "--workers", "0")
    again = read_profile(home)
    assert again is not None
    assert again.api_key == running.api_key
    process.terminate()
    assert process.wait(60) == 0


def test_up_starts_as_many_workers_as_its_option_names(shell: Shell) -> None:
    process = up(shell, "--workers", "2")
    profile = read_profile(shell.folder / "mergenet-home")
    assert profile is not None
    with Client(profile.url, profile.api_key) as client:
        wait(lambda: len(client.workers()) == 2)
        assert {one.state for one in client.devices()} == {"free"}
    process.terminate()
    assert process.wait(60) == 0


def test_a_child_that_dies_is_started_again_and_no_job_is_lost(shell: Shell) -> None:
    process = up(shell, "--workers", "0")
    profile = read_profile(shell.folder / "mergenet-home")
    assert profile is not None
    with Client(profile.url, profile.api_key) as client:
        job = client.submit(json.loads((shell.folder / shell.write()).read_text()))
        for words in ("redis-server", "-m service --fd"):
            before = pid_of(shell, words)
            os.kill(before, signal.SIGKILL)
            wait(lambda words=words, before=before: pid_of(shell, words) != before)  # type: ignore[misc]
            assert client.get(job.id).state == "queued"
    process.terminate()
    assert process.wait(30) == 0


def test_a_child_that_always_ends_is_given_up_with_the_end_of_its_log(shell: Shell) -> None:
    (shell.folder / "bin").mkdir()
    broken = shell.folder / "bin" / "redis-server"
    broken.write_text("#!/bin/sh\necho 'the disk is on fire'\nexit 3\n")
    broken.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{broken.parent}:{path}"
    try:
        answer = shell.run("up", "--port", "0")
    finally:
        os.environ["PATH"] = path
    assert answer.returncode == 1
    assert "redis ended 4 times right after its start (exit 3)" in answer.stderr
    assert "the disk is on fire" in answer.stderr
    assert "Traceback" not in answer.stderr
