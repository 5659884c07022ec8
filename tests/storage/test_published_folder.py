"""Published folders are whole or absent, and a changed byte is seen."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from mergenet_core.errors import CheckpointInvalid, StorageFull
from mergenet_core.storage.published_folder import MANIFEST, publishing, sweep, verify


def publish(final: Path, content: bytes = b"weights", attempt: int = 1) -> Path:
    with publishing(final, kind="checkpoint", step=3, attempt=attempt, roles={".bin": "model"}) as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "a.bin").write_bytes(content)
        (draft / "b.json").write_text("{}")
    return final


def test_a_file_larger_than_the_system_allows_is_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with (
            pytest.raises(StorageFull, match="no space left while writing final"),
            publishing(tmp_path / "final", kind="checkpoint", step=1, attempt=1) as draft,
        ):
            (draft / "weights").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_published_folder_verifies(tmp_path: Path) -> None:
    manifest = verify(publish(tmp_path / "step-3"))
    assert [(entry.path, entry.role, entry.bytes) for entry in manifest.files] == [
        ("b.json", "state", 2),
        ("deep/a.bin", "model", 7),
    ]
    assert manifest.step == 3


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "no manifest", "garbled manifest"])
def test_any_harm_is_seen(tmp_path: Path, harm: str) -> None:
    folder = publish(tmp_path / "step-3")
    target = folder / "deep" / "a.bin"
    match harm:
        case "flip":
            target.write_bytes(b"weightz")
        case "cut":
            target.write_bytes(b"wei")
        case "remove":
            target.unlink()
        case "no manifest":
            (folder / MANIFEST).unlink()
        case _:
            (folder / MANIFEST).write_text("{")
    with pytest.raises(CheckpointInvalid):
        verify(folder)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with publishing(tmp_path / "step-3", kind="checkpoint", step=3, attempt=1) as draft:
            (draft / "a").write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_later_attempt_replaces_the_same_step(tmp_path: Path) -> None:
    publish(tmp_path / "step-3")
    publish(tmp_path / "step-3", b"newer", attempt=2)
    assert (tmp_path / "step-3" / "deep" / "a.bin").read_bytes() == b"newer"
    verify(tmp_path / "step-3")


def test_what_a_killed_attempt_left_is_swept(tmp_path: Path) -> None:
    publish(tmp_path / "step-3")
    (tmp_path / ".step-6.attempt-1").mkdir()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_a_full_disk_keeps_what_was_published(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        publish(tmp_path / "step-3")
        with pytest.raises(StorageFull, match="no space left"):
            publish(tmp_path / "step-6", b"x" * 1_000_000)
        verify(tmp_path / "step-3")
        assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
