"""Training libraries imported once a worker, not once a trial: eight seconds of processor time each.

On a host without a GPU the worker imports them and every training process is a fork of a fork of it. Where there is a
GPU, the worker never imports torch: a process that was forked from one that has touched CUDA cannot use it.
"""

from __future__ import annotations

import gc
import importlib
import logging
import sys

_MODULES = ("mergenet_core.training.trial", "mergenet_core.training.finalize")
_log = logging.getLogger("workers.host.prewarm")


def warm_up() -> None:
    """Import what a trial needs. If that fails, the trials will say so, in the log of each."""
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:
            _log.warning("%s cannot be imported: %s", module, error)
    gc.freeze()  # the forks share these objects' memory as long as no collection touches them


def is_warm() -> bool:
    """Whether a fork of this process can train at once."""
    return _MODULES[0] in sys.modules
