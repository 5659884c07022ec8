"""The command `mergenet`. Until the command line is read in, Ctrl-C simply ends it: libraries swallow the exception."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the command line and run it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from service.cli import commands

    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands.main()


if __name__ == "__main__":
    main()
