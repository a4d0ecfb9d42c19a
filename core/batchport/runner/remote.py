"""An object store in a process of its own, so that the runner can fork: obstore does not survive that.

Called by pack.py for every store but a folder. A function that used obstore in a fork of a process that
had used it would wait for ever for threads that the fork does not have.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from batchport.errors import BatchportError, StoreError
from batchport.store import Store, open_store

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["RemoteStore"]


class RemoteStore(Store):
    """The store at `url`, by way of a process that ends with this one. Raises as `open_store` does."""

    def __init__(self, url: str) -> None:
        super().__init__()
        from multiprocessing import Pipe  # a job on a folder store must not pay for it

        self.url = url
        self._pipe, theirs = Pipe()
        if os.fork() == 0:
            self._pipe.close()
            _serve(url, theirs)
        theirs.close()
        self._answer()

    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        return bool(self._ask("put", key, data, create=create))

    def get(self, key: str) -> bytes | None:
        data: bytes | None = self._ask("get", key)
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        data: bytes | None = self._ask("get_range", key, start, length)
        return data

    def exists(self, key: str) -> bool:
        return bool(self._ask("exists", key))

    def names(self, folder: str) -> list[str]:
        return list(self._ask("names", folder))

    def delete(self, keys: Iterable[str]) -> None:
        self._ask("delete", list(keys))

    def _ask(self, method: str, *args: object, **kwargs: object) -> Any:
        self.calls[method] += 1
        with suppress(OSError):  # it has ended: so says the answer, too
            self._pipe.send((method, args, kwargs))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise StoreError(f"the process that talks to the store {self.url} has ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(url: str, pipe: Connection) -> NoReturn:
    """Be the store's process until the runner is gone: never returns."""
    try:
        # Backends send these to every process of a job, and the runner has something to write before it ends.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        try:
            store = open_store(url)
        except (BatchportError, ImportError) as error:
            pipe.send(error)
            os._exit(0)
        pipe.send(None)
        while True:
            method, args, kwargs = pipe.recv()
            try:
                pipe.send(getattr(store, method)(*args, **kwargs))
            except StoreError as error:
                pipe.send(error)
    except EOFError:
        pass
    finally:
        os._exit(0)
