"""Brings one file of a result home: resumed where it broke, and under its name only when its hash is right."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path, PurePosixPath

import httpx2

from mergenet_core.errors import CheckpointInvalid, StorageFull, Unavailable
from service.client.errors import raise_problem
from service.schemas import ArtifactFile

TRIES = 6
_CHUNK = 1 << 20


def fetch(http: httpx2.Client, file: ArtifactFile, folder: Path) -> Path:
    """Download a file into a folder, unless it is there already and whole.

    Raises: `CheckpointInvalid` when its hash stays wrong, `StorageFull`, `Unavailable`.
    """
    final = folder / _safe(file.path)
    if final.is_file() and final.stat().st_size == file.bytes and _hash(final) == file.sha256:
        return final
    part = final.with_name(final.name + ".part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, TRIES + 1):
            try:
                _append(http, file, part)
            except (httpx2.TransportError, Unavailable) as error:
                if attempt == TRIES:
                    raise Unavailable(
                        f"{file.path}: the download broke {TRIES} times, last by {error}; "
                        "run it again and it goes on where it is"
                    ) from None
                time.sleep(0.2 * 2**attempt)
                continue
            if part.stat().st_size == file.bytes and _hash(part) == file.sha256:
                os.replace(part, final)
                return final
            part.unlink()  # torn or of another version: from the beginning, once more
            if attempt > 1:
                break
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space left for {file.path}; free disk and run it again, it goes on") from error
        raise
    raise CheckpointInvalid(f"{file.path} came with another hash than the manifest's, twice; ask the operator")


def _append(http: httpx2.Client, file: ArtifactFile, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= file.bytes and part.exists():
        return
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": f'"{file.sha256}"'}
    with http.stream("GET", file.href, headers=headers) as answer:
        if answer.is_error:
            answer.read()
            raise_problem(answer)
        with part.open("ab" if answer.status_code == 206 else "wb") as out:
            for chunk in answer.iter_bytes(_CHUNK):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())


def _safe(path: str) -> PurePosixPath:
    """A manifest comes from the network: its names may not lead out of the folder."""
    name = PurePosixPath(path)
    if name.is_absolute() or ".." in name.parts or not name.parts or "\\" in path or "\x00" in path:
        raise CheckpointInvalid(f"the manifest names {path!r}, which leads out of the folder; nothing was written")
    return name


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
