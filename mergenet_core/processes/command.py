"""The command lines of child processes that run this software."""

from __future__ import annotations

import sys


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules in a new Python process.

    `-P` keeps the working directory off `sys.path`: there a user's own folder named like one of our packages would be
    executed in place of the package. An option rather than PYTHONSAFEPATH, which the user's own programs would inherit.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
