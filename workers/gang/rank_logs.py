"""Output of a gang's processes: every line is copied to the attempt's log with `[rank N]` in front.

It is read through pipes, so that the last lines of a process that was killed are kept.
"""

from __future__ import annotations

import os
import selectors
import threading

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from workers.logs import copy_out

_CHUNK_BYTES = 65536
_SELECT_SECONDS = 0.2


class RankLogs(LogsSpecs):
    """Makes torchelastic's agent send its processes' output into pipes, which a thread reads."""

    def __init__(self) -> None:
        super().__init__(log_dir=os.devnull)
        self._closing = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._copy, name="ranklog", daemon=True)

    @property
    def root_log_dir(self) -> str:
        """There are no log files."""
        return os.devnull

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Create a pipe for each process, under a name that the agent can open."""
        names = {}
        for local_rank, environment in envs.items():
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            prefix = f"[rank {environment['RANK']}] ".encode()
            self._selector.register(reader, selectors.EVENT_READ, _Lines(prefix))
            names[local_rank] = f"/proc/self/fd/{writer}"
            environment["TORCHELASTIC_ERROR_FILE"] = ""
        self._thread.start()
        return LogsDest(stdouts=names, stderrs=names, error_files=dict.fromkeys(envs, os.devnull))

    def close(self, seconds: float) -> None:
        """Copy what is left once the processes have ended, for at most `seconds`."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _copy(self) -> None:
        while not self._closing.is_set():
            self._copy_once(_SELECT_SECONDS)
        while self._copy_once(0):
            pass
        for key in self._selector.get_map().values():
            copy_out(key.data.flush())

    def _copy_once(self, seconds: float) -> bool:
        ready = self._selector.select(seconds)
        for key, _ in ready:
            copy_out(key.data.add(os.read(key.fd, _CHUNK_BYTES)))
        return bool(ready)


class _Lines:
    """The output of one process cut into whole lines, so that those of several processes do not mix."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix, self._unfinished = prefix, b""

    def add(self, text: bytes) -> bytes:
        *lines, self._unfinished = (self._unfinished + text).split(b"\n")
        if len(self._unfinished) > _CHUNK_BYTES:
            lines, self._unfinished = [*lines, self._unfinished], b""
        return b"".join(self._prefix + line + b"\n" for line in lines)

    def flush(self) -> bytes:
        return self.add(b"\n") if self._unfinished else b""
