"""Calls become bytes: functions and arguments pickled one by one, as Blobs.

Used by executor.py, in the thread that submits.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import cloudpickle

from batchport.errors import UsageError
from batchport.hosts._waiting import Kept, WaitingBytes
from batchport.tasks import Blob

__all__ = ["Pickled", "Pickler", "name_of"]


class Pickled(NamedTuple):
    """A function that is pickled already, and its name, for people."""

    blob: Blob
    name: str


class Pickler:
    """Makes blobs of objects; of equal large ones, and of equal functions, all waiting tasks share one."""

    _LARGE = 16 << 10
    _FUNCTIONS = 64

    def __init__(self, waiting: WaitingBytes) -> None:
        self._waiting = waiting
        self._lock = threading.Lock()
        self._large: weakref.WeakValueDictionary[str, Kept] = weakref.WeakValueDictionary()
        self._functions: OrderedDict[str, Blob] = OrderedDict()

    def function(self, function: Callable[..., Any] | Pickled) -> Pickled:
        """Pickle a function, unless it is done already. Raises UsageError."""
        if isinstance(function, Pickled):
            return function
        name = name_of(function)
        blob = self.blob(function, f"the function {name}")
        with self._lock:
            blob = self._functions.setdefault(blob.key, blob)
            self._functions.move_to_end(blob.key)
            if len(self._functions) > self._FUNCTIONS:
                self._functions.popitem(last=False)
        return Pickled(blob, name)

    def blob(self, value: object, what: str) -> Blob:
        """Pickle one object, unless it is done already. Raises UsageError, naming it as `what`."""
        if isinstance(value, Pickled):
            return value.blob
        try:
            data = cloudpickle.dumps(value)
        except Exception as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            raise UsageError(
                f"{what} (a {kind}) cannot be pickled: {error}. "
                "Make it inside the function, or pass what it is made from"
            ) from error
        # 160 bits are enough to tell bytes apart, and many calls may wait.
        key, size = hashlib.sha256(data).hexdigest()[:40], len(data)
        if size < self._LARGE:
            return Blob(key, size, self._waiting.keep(data, size))
        with self._lock:
            kept = self._large.get(key) or self._large.setdefault(key, self._waiting.keep(data, size))
        return Blob(key, size, kept)


def name_of(function: Callable[..., Any] | Pickled) -> str:
    """Return what people call a function."""
    if isinstance(function, Pickled):
        return function.name
    named = getattr(function, "func", function)  # a partial has no name, and its function has
    return str(getattr(named, "__name__", type(named).__name__))
