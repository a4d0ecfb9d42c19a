"""The store as the worker uses it: awaited, off the event loop, with patience, and tidied up in bulk.

Used by all parts of the worker that touch the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from batchport.errors import StoreError
from batchport.store import Keys, Store
from batchport.worker.calls import Backoff

__all__ = ["Storage"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = logging.getLogger("batchport.worker")
_THREADS = 8


class Storage:
    """A store and the keys of one worker in it."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.store, self.keys = store, keys
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="batchport-store")
        self._unwanted: list[str] = []

    async def do(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a blocking function in a thread. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def insist(self, what: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a function of the store again and again until it raises no StoreError; `what` is for the log."""
        backoff = Backoff()
        while True:
            try:
                return await self.do(function, *args, **kwargs)
            except StoreError as error:
                delay = backoff.next()
                _log.warning("can't %s, will try again in %.0f s: %s", what, delay, error)
                await asyncio.sleep(delay)

    async def get_all(self, keys: Iterable[str]) -> list[bytes | None]:
        """Read several objects in one thread. Raises StoreError."""
        return await self.do(lambda: [self.store.get(key) for key in keys])

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        """Write several objects; for `do` and `insist`."""
        for key, data in objects.items():
            self.store.put(key, data)

    def throw_away(self, keys: Iterable[str]) -> None:
        """Mark objects for the next `tidy`."""
        self._unwanted += keys

    async def tidy(self) -> None:
        """Remove all objects that were thrown away, in one call; what can't be removed now stays marked."""
        unwanted, self._unwanted = self._unwanted, []
        if not unwanted:
            return
        try:
            await self.do(self.store.delete, unwanted)
        except BaseException as error:
            self._unwanted += unwanted  # also when the worker leaves just now: it tidies once more at the end
            if not isinstance(error, StoreError):
                raise
            _log.warning("can't clean up in the store, will try again: %s", error)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False)
