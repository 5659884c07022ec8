"""Python scripts run as processes of their own, for what would change the test's process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}


def start_script(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start Python code in a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a folder to its end, which must be a good one."""
    process = start_script(code, folder)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
