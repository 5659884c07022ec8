"""A user's own folders may be named like our packages; the service runs in their folder and never executes them."""

from __future__ import annotations

from pathlib import Path

from service.client.client import Client
from service.client.profile import read_profile
from tests.cli.conftest import Shell, wait
from tests.shadows import write_shadows


def test_up_starts_among_folders_named_like_our_packages(shell: Shell) -> None:
    witness = write_shadows(shell.folder)
    process = shell.start("up", "--port", "0", "--workers", "1")
    profile = wait(lambda: read_profile(shell.folder / "mergenet-home") or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    with Client(profile.url, profile.api_key) as client:
        wait(client.workers)
    process.terminate()
    assert process.wait(60) == 0
    assert not witness.exists(), witness.read_text()


def test_a_python_path_that_names_the_working_directory_does_not_reach_children(shell: Shell) -> None:
    witness = write_shadows(shell.folder)
    for package in ("mergenet_core", "service"):  # Python itself would give these to the first process
        (shell.folder / package).rename(shell.folder / f"not-{package}")
    root = str(Path(__file__).parents[2])
    process = shell.start("up", "--port", "0", "--workers", "1", python_path=f"{root}::.")
    profile = wait(lambda: read_profile(shell.folder / "mergenet-home") or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    with Client(profile.url, profile.api_key) as client:
        wait(client.workers)
    process.terminate()
    assert process.wait(60) == 0
    assert not witness.exists(), witness.read_text()


def test_run_reaches_the_service_among_folders_named_like_our_packages(shell: Shell) -> None:
    witness = write_shadows(shell.folder)
    document = shell.write(source={"model": {"path": "no-such-model"}})
    answer = shell.run("run", document)
    assert (answer.returncode, "no-such-model" in answer.stderr) == (2, True), answer.stderr
    assert not witness.exists(), witness.read_text()


def test_pack_runs_among_folders_named_like_our_packages(shell: Shell) -> None:
    witness = write_shadows(shell.folder)
    answer = shell.run("pack", "models/mlp", "--rank", "4", "--out", "kept.safetensors")
    assert answer.returncode == 0, answer.stderr
    assert not witness.exists(), witness.read_text()
