"""Folders in a working directory that are named like our packages, and leave a witness when Python executes them."""

from __future__ import annotations

from pathlib import Path

PACKAGES = ("mergenet_core", "service", "workers")


def write_shadows(folder: Path) -> Path:
    """Write one folder a package; return the path of the witness that any of them would leave."""
    witness = folder / "witness"
    code = f"import os, sys\nopen({str(witness)!r}, 'a').write(f'{{__file__}} {{sys.orig_argv}}\\n')\nos._exit(9)\n"
    for package in PACKAGES:
        (folder / package).mkdir(parents=True)
        for name in ("__init__.py", "__main__.py"):
            (folder / package / name).write_text(code)
    return witness
