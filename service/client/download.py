"""Downloads the files of a result: resumed after a broken connection, renamed into place once the SHA-256 is right."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path, PurePosixPath

import httpx2

from mergenet_core.errors import FULL_DISK, CheckpointInvalid, StorageFull, Unavailable
from service.client.errors import raise_problem
from service.schemas import ArtifactFile

CONNECTIONS_MAX = 6
"""A file is given up when so many connections broke."""
WRONG_HASHES_MAX = 2
"""A file is given up when it arrived whole so often, each time with a wrong hash."""
_CHUNK = 1 << 20


def fetch(http: httpx2.Client, file: ArtifactFile, folder: Path) -> Path:
    """Download a file into a folder, unless it is already there with the right size and hash.

    Raises: `CheckpointInvalid` when the hash stays wrong, `StorageFull`, `Unavailable`.
    """
    final = folder / _safe(file.path)
    if _is_whole(final, file):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _download(http, file, final.with_name(final.name + ".part"), final)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise StorageFull(
                f"no space left for {file.path}; free disk space and run the download again, it will resume"
            ) from error
        raise
    return final


def _download(http: httpx2.Client, file: ArtifactFile, part: Path, final: Path) -> None:
    broken = wrong = 0
    while True:
        try:
            _append(http, file, part)
        except (httpx2.TransportError, Unavailable) as error:
            broken += 1
            if broken == CONNECTIONS_MAX:
                raise Unavailable(
                    f"{file.path}: the connection broke {broken} times, the last time with: {error}; "
                    "run the download again, it will resume"
                ) from None
            time.sleep(0.2 * 2**broken)
            continue
        if _is_whole(part, file):
            os.replace(part, final)
            return
        part.unlink()  # damaged, or from another version of the file: start over
        wrong += 1
        if wrong == WRONG_HASHES_MAX:
            raise CheckpointInvalid(
                f"{file.path} arrived {wrong} times, each time with another SHA-256 than the manifest's "
                f"({file.sha256}); the file on the server may be damaged, ask its operator"
            )


def _append(http: httpx2.Client, file: ArtifactFile, part: Path) -> None:
    """Request the bytes that are missing from a partial file."""
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


def _is_whole(path: Path, file: ArtifactFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _safe(path: str) -> PurePosixPath:
    """A file's path in the manifest, which comes from the network and must not lead out of the folder."""
    name = PurePosixPath(path)
    if name.is_absolute() or ".." in name.parts or not name.parts or "\\" in path or "\x00" in path:
        raise CheckpointInvalid(f"the manifest names {path!r}, which leads out of the folder; nothing was written")
    return name
