"""Published folders: complete or absent, with a manifest of every file's hash, and verified before use."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mergenet_core.errors import FULL_DISK, CheckpointInvalid, StorageFull
from mergenet_core.records.artifacts import Artifact, Manifest
from mergenet_core.records.provenance import Provenance

MANIFEST = "manifest.json"
_NO_SPACE_BYTES = 65536


@contextmanager
def publishing(
    final: Path,
    *,
    kind: Literal["checkpoint", "artifact"],
    step: int,
    attempt: int,
    roles: Mapping[str, str] | None = None,
    about: Provenance | None = None,
) -> Iterator[Path]:
    """Yield an empty folder to write into, then hash, fsync and rename it to `final`, which is complete or absent.

    The draft's name has the number of the attempt, so that two attempts never write into the same folder. `roles` maps
    a file's name or suffix to its role in the manifest. After an error nothing is left of the draft.
    Raises: `StorageFull`.
    """
    draft = final.with_name(f".{final.name}.attempt-{attempt}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        files = tuple(_describe(draft, path, roles or {}) for path in _files(draft))
        manifest = Manifest(kind=kind, step=step, files=files, about=about or {})
        _write_synced(draft / MANIFEST, manifest.model_dump_json(indent=1).encode())
        for folder in [draft, *(path for path in draft.rglob("*") if path.is_dir())]:
            _sync(folder)
        if final.exists():  # the same step, published again by a later attempt
            shutil.rmtree(final)
        os.rename(draft, final)
        _sync(final.parent)
    except Exception as error:
        full = _disk_is_full(error, draft)
        shutil.rmtree(draft, ignore_errors=True)
        if full:
            raise StorageFull(
                f"no space left while writing {final.name}; what was published before is kept. Free disk, then resume"
            ) from error
        raise
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def verify(folder: Path) -> Manifest:
    """Read a published folder's manifest and compare every file with it.

    Raises: `CheckpointInvalid` naming the first file that is missing or differs.
    """
    manifest = read_manifest(folder)
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise CheckpointInvalid(f"{folder.name}: {entry.path} is missing")
        if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
            raise CheckpointInvalid(
                f"{folder.name}: {entry.path} does not match its hash; it was changed or is incomplete"
            )
    return manifest


def verified(path: Path, entry: Artifact) -> bool:
    """Whether a file has the content that a manifest names; it is hashed once, and again when it has changed."""
    try:
        stat = path.stat()
    except OSError:
        return False
    if not path.is_file() or stat.st_size != entry.bytes:
        return False
    return _hash_of(path, stat.st_ino, stat.st_mtime_ns, stat.st_size) == entry.sha256


@lru_cache(maxsize=10_000)
def _hash_of(path: Path, inode: int, changed_at: int, size: int) -> str:
    """The SHA-256 of a file in the state that the other values name."""
    return sha256(path)


def verifies(folder: Path) -> bool:
    """Whether a published folder is there, complete and unchanged."""
    try:
        verify(folder)
    except CheckpointInvalid:
        return False
    return True


def read_manifest(folder: Path) -> Manifest:
    """Read a published folder's manifest. Raises: `CheckpointInvalid` when it is missing or not one."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError:
        raise CheckpointInvalid(f"{folder.name} has no {MANIFEST}: it was never completed") from None
    except ValidationError:
        raise CheckpointInvalid(f"{folder.name}: {MANIFEST} is not a manifest") from None


def sweep(parent: Path) -> None:
    """Remove the drafts that interrupted attempts left in a folder."""
    for draft in parent.glob(".*.attempt-*"):
        shutil.rmtree(draft, ignore_errors=True)


def sha256(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_is_full(error: Exception, folder: Path) -> bool:
    """Whether the error comes from a full disk; safetensors and torch raise errors of their own for it."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return True
    if any(os.strerror(number) in str(error) for number in FULL_DISK):
        return True
    try:
        return shutil.disk_usage(folder).free < _NO_SPACE_BYTES
    except OSError:
        return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(folder: Path, path: Path, roles: Mapping[str, str]) -> Artifact:
    _sync(path)
    name = path.relative_to(folder).as_posix()
    role = next((role for key, role in roles.items() if name == key or name.endswith(key)), "state")
    return Artifact(path=name, bytes=path.stat().st_size, sha256=sha256(path), role=role)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
