"""The bytes of calls that wait: in memory up to a limit, beyond it in the store.

Used by `_pickling.py`, which gives bytes in, by `_loop.py`, which clears up, and by `scaler.py`, which does both.
Bytes beyond the limit are gathered into segments of some MiB, one object each. A segment goes when no call refers to
it any more; so bytes are never copied twice, and a call that waits there costs where they are and no more.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections import deque
from contextlib import suppress

from batchport.errors import StoreError
from batchport.store import Keys, Store
from batchport.worker.calls import Backoff

__all__ = ["WaitingBytes"]

_log = logging.getLogger("batchport.executor")

_IN_MEMORY = 64 << 20
_SEGMENT = 4 << 20


class WaitingBytes:
    """Keeps bytes until nothing refers to them. Any thread may use it."""

    def __init__(self, store: Store, worker: str) -> None:
        self.store = store
        self._keys = Keys(worker)
        # Its own, so that what an earlier start has left is not mistaken for this one's.
        self._token = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._held = 0
        self._let_go: deque[int] = deque()
        self._made = 0
        self._open: _Segment | None = None
        self._unused: deque[str] = deque()
        self._stored: set[str] = set()

    def keep(self, data: bytes, size: int) -> Kept:
        """Return what gives the bytes back. May take the time that it takes to write a segment to the store.

        `size` is their number, the very object that the caller keeps, so that there are not two.
        """
        with self._lock:
            while self._let_go:
                self._held -= self._let_go.popleft()
            if self._held + size <= _IN_MEMORY:
                self._held += size
                return _InMemory(self, data)
            if size >= _SEGMENT:  # not copied into one with others
                segment, start = self._new_segment(data), 0
                self._write(segment, data)
            else:
                self._open = segment = self._open or self._new_segment(bytearray())
                assert isinstance(segment.data, bytearray)
                start = len(segment.data)
                segment.data += data
                if len(segment.data) >= _SEGMENT and self._write(segment, bytes(segment.data)):
                    self._open = None
            return _InSegment(segment, start, size)

    def _new_segment(self, data: bytes | bytearray) -> _Segment:
        self._made += 1
        return _Segment(self, self._keys.waiting(f"{self._token}-{self._made}"), data)

    def _write(self, segment: _Segment, data: bytes) -> bool:
        try:
            self.store.put(segment.key, data)
        except StoreError as error:
            # No call is refused for it: they stay in memory, and the next one tries again.
            _log.warning("can't put %d bytes of waiting calls into the store: %s", len(data), error)
            return False
        self._stored.add(segment.key)
        segment.data = None
        self.tidy()
        return True

    def let_go(self, size: int) -> None:
        """Have bytes counted as gone that were in memory. Never blocks: the worker's loop calls it."""
        self._let_go.append(size)

    def throw_away(self, key: str) -> None:
        """Have a segment removed at the next `tidy`. Never blocks: the garbage collector calls it."""
        self._unused.append(key)

    def tidy(self) -> None:
        """Remove the segments that nothing refers to. What can't be removed now is removed later."""
        keys = []
        with suppress(IndexError):  # not asked first: another thread may tidy as well
            while True:
                if (key := self._unused.popleft()) in self._stored:
                    keys.append(key)
        self._delete(keys)

    def remove_strays(self) -> None:
        """Remove what an earlier start has left. Raises StoreError."""
        self.store.delete([self._keys.waiting(name) for name in self.store.names(self._keys.segments)])

    def close(self) -> None:
        """Remove everything; nothing can be read afterwards."""
        self._delete(list(self._stored))

    def _delete(self, keys: list[str]) -> None:
        if not keys:
            return
        try:
            self.store.delete(keys)
        except StoreError as error:
            _log.warning("can't remove %d segments of waiting calls, will try again: %s", len(keys), error)
            self._unused.extend(keys)
        else:
            self._stored.difference_update(keys)


class _InMemory:
    __slots__ = ("__weakref__", "_data", "_waiting")

    def __init__(self, waiting: WaitingBytes, data: bytes) -> None:
        self._waiting, self._data = waiting, data

    async def __call__(self) -> bytes:
        return self._data

    def __del__(self) -> None:
        self._waiting.let_go(len(self._data))


class _Segment:
    """`data` is None once it is in the store."""

    __slots__ = ("data", "key", "waiting")

    def __init__(self, waiting: WaitingBytes, key: str, data: bytes | bytearray) -> None:
        self.waiting, self.key = waiting, key
        self.data: bytes | bytearray | None = data

    def __del__(self) -> None:
        self.waiting.throw_away(self.key)


class _InSegment:
    __slots__ = ("__weakref__", "_segment", "_size", "_start")

    def __init__(self, segment: _Segment, start: int, size: int) -> None:
        self._segment, self._start, self._size = segment, start, size

    async def __call__(self) -> bytes:
        segment, backoff = self._segment, Backoff()
        while True:
            if (data := segment.data) is not None:
                return bytes(data[self._start : self._start + self._size])
            try:
                store = segment.waiting.store
                found = await asyncio.to_thread(store.get_range, segment.key, self._start, self._size)
            except StoreError as error:
                delay = backoff.next()
                _log.warning("can't read a waiting call, will try again in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)
                continue
            if found is None or len(found) < self._size:
                raise StoreError(f"{segment.key}, which held waiting calls, was removed from the store")
            return found


Kept = _InMemory | _InSegment
"""What `keep` returns: called, it gives the bytes, as `Blob.read` does."""
