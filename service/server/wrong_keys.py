"""Slows down whoever tries keys: after several wrong ones from an address, further ones are not looked at for a while.

Keys that were right not long ago are known, so that nobody behind the same address is locked out. What is noted is in
the memory of this process, and bounded.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict, deque

_SECONDS = 60.0
_ADDRESSES_MAX, _KEYS_MAX = 10_000, 10_000


class WrongKeys:
    """Addresses that sent wrong keys in the last minute, and the keys that were right last."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def refuses(self, address: str, key: str) -> bool:
        """Whether a key from an address is not to be looked at."""
        with self._lock:
            times = self._wrong.get(address, deque())
            while times and times[0] < time.monotonic() - _SECONDS:
                times.popleft()
            return len(times) >= self._per_minute and _digest(key) not in self._right

    def note(self, address: str, key: str, *, right: bool) -> None:
        """Note whether a key from an address was right."""
        with self._lock:
            if right:
                self._right[_digest(key)] = None
                self._right.move_to_end(_digest(key))
                if len(self._right) > _KEYS_MAX:
                    self._right.popitem(last=False)
                return
            self._right.pop(_digest(key), None)  # revoked since
            self._wrong.setdefault(address, deque(maxlen=self._per_minute)).append(time.monotonic())
            self._wrong.move_to_end(address)
            if len(self._wrong) > _ADDRESSES_MAX:
                self._wrong.popitem(last=False)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
