"""What the processes of a trial print."""

from __future__ import annotations

import contextlib
import logging
import os
import sys


def configure_logging() -> None:
    """Log to standard error with time, level and module, and flush standard output after every line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log is read while it is written


def copy_out(text: bytes) -> None:
    """Print what another process printed.

    Errors are ignored: on a full disk the reader must go on, or the training would wait for room in its output pipe.
    """
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(1, text) :]
