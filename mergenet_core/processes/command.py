"""The command lines of child processes that run this software."""

from __future__ import annotations

import os
import sys


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules in a new Python process.

    `-P` keeps the working directory off `sys.path`: there a user's own folder named like one of our packages would be
    executed in place of the package. An option rather than PYTHONSAFEPATH, which the user's own programs would inherit.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def drop_relative_python_path() -> None:
    """Take empty and relative entries out of PYTHONPATH, for this process's children.

    They stand for the working directory, which `-P` does not keep off `sys.path` when PYTHONPATH names it.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if os.path.isabs(entry)]
    if kept:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    else:
        os.environ.pop("PYTHONPATH", None)
