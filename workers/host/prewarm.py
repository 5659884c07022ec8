"""Imports the training libraries once a worker rather than once a trial, which saves eight seconds of CPU time each.

On a host without a GPU the worker imports them, and every training process is forked from it, through the supervisor.
On a host with a GPU the worker never imports torch: a process that is forked after CUDA was initialised cannot use it.
"""

from __future__ import annotations

import gc
import importlib
import logging
import sys

_MODULES = ("mergenet_core.training.trial", "mergenet_core.training.finalize")
_log = logging.getLogger("workers.host.prewarm")


def warm_up() -> None:
    """Import what a trial needs. If that fails, every trial reports it in its own log."""
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:
            _log.warning("%s cannot be imported: %s", module, error)
    gc.freeze()  # forked processes share these objects' memory as long as no collection touches them


def is_warm() -> bool:
    """Whether a process forked from this one can train without importing the libraries first."""
    return _MODULES[0] in sys.modules
