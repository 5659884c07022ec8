"""What the processes of a gang print: every line goes to the attempt's log with `[rank N]` in front.

Through pipes, so that the last lines of a process that was killed are kept, and nothing is written twice.
"""

from __future__ import annotations

import os
import selectors
import threading

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from workers.processes import copy_out

_CHUNK_BYTES = 65536
_LOOK_SECONDS = 0.2


class RankLogs(LogsSpecs):
    """Where torchelastic's agent sends its processes' output: into pipes that a thread reads."""

    def __init__(self) -> None:
        super().__init__(log_dir=os.devnull)
        self._closing = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._copy, name="ranklog", daemon=True)

    @property
    def root_log_dir(self) -> str:
        """There is none."""
        return os.devnull

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """A pipe for each process, under a name that the agent can open."""
        places = {}
        for local_rank, environment in envs.items():
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            prefix = f"[rank {environment['RANK']}] ".encode()
            self._selector.register(reader, selectors.EVENT_READ, _Lines(prefix))
            places[local_rank] = f"/proc/self/fd/{writer}"
            environment["TORCHELASTIC_ERROR_FILE"] = ""
        self._thread.start()
        return LogsDest(stdouts=places, stderrs=places, error_files=dict.fromkeys(envs, os.devnull))

    def close(self, seconds: float) -> None:
        """Copy what is left, when the processes have ended."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _copy(self) -> None:
        while not self._closing.is_set():
            self._copy_once(_LOOK_SECONDS)
        while self._copy_once(0):
            pass
        for key in self._selector.get_map().values():
            copy_out(key.data.rest())

    def _copy_once(self, seconds: float) -> bool:
        ready = self._selector.select(seconds)
        for key, _ in ready:
            copy_out(key.data.whole(os.read(key.fd, _CHUNK_BYTES)))
        return bool(ready)


class _Lines:
    """The output of one process, cut into whole lines, so that those of several do not mix."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix, self._begun = prefix, b""

    def whole(self, text: bytes) -> bytes:
        *lines, self._begun = (self._begun + text).split(b"\n")
        if len(self._begun) > _CHUNK_BYTES:
            lines, self._begun = [*lines, self._begun], b""
        return b"".join(self._prefix + line + b"\n" for line in lines)

    def rest(self) -> bytes:
        return self.whole(b"\n") if self._begun else b""
