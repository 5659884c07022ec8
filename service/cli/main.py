"""Entry point of the command `mergenet`.

Ctrl-C ends the process directly until the command line is imported: some libraries swallow a `KeyboardInterrupt` that
is raised while they are imported.
"""

from __future__ import annotations

import signal
import sys

from mergenet_core import __version__
from mergenet_core.processes.command import drop_relative_python_path


def main() -> None:
    """Print the version at once, or import the command line and run it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:] == ["--version"]:
        print(f"mergenet {__version__}")
        return
    drop_relative_python_path()
    from service.cli import commands

    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands.main()


if __name__ == "__main__":
    main()
