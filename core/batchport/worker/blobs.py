"""Functions and arguments that several tasks share: stored once, removed when no task needs them.

Called by the engine: a task holds its blobs from intake to outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from batchport.tasks import Blob, Task
from batchport.worker.storage import Storage

__all__ = ["SharedBlobs"]

_SHARED_ABOVE = 16 << 10
"""Bytes; a smaller blob costs less inside each payload than an object of its own."""


@dataclass(slots=True)
class _Shared:
    holders: int = 0
    stored: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedBlobs:
    """Which large blobs are in the store, and how many tasks hold each."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._shared: dict[str, _Shared] = {}

    def hold(self, task: Task) -> None:
        """Keep the task's blobs from being removed."""
        for key in {blob.key for blob in _large(task)}:
            self._shared.setdefault(key, _Shared()).holders += 1

    async def ready(self, tasks: Iterable[Task]) -> dict[str, bytes]:
        """Have all large blobs of held tasks in the store, and return the bytes of the small ones by key.

        Raises whatever a blob's `read` raises.
        """
        small: dict[str, bytes] = {}
        for blob in {blob.key: blob for task in tasks for blob in _all(task)}.values():
            if blob.size <= _SHARED_ABOVE:
                small[blob.key] = await blob.read()
                continue
            shared = self._shared[blob.key]
            async with shared.lock:
                if not shared.stored:
                    data = await blob.read()
                    key = self._storage.keys.blob(blob.key)
                    await self._storage.insist(f"store {blob.size} bytes at {key}", self._storage.store.put, key, data)
                    shared.stored = True
        return small

    async def let_go(self, task: Task) -> None:
        """Give up the task's hold, and remove the blobs that nobody holds any more."""
        for key in {blob.key for blob in _large(task)}:
            shared = self._shared[key]
            shared.holders -= 1
            if shared.holders:
                continue
            async with shared.lock:  # somebody may take hold of it again meanwhile
                if shared.stored and not shared.holders:
                    stored = self._storage.keys.blob(key)
                    await self._storage.insist(f"remove {stored}", self._storage.store.delete, [stored])
                    shared.stored = False
                if not shared.holders:
                    self._shared.pop(key, None)


def _all(task: Task) -> list[Blob]:
    return [task.function, *task.args, *task.kwargs.values()]


def _large(task: Task) -> list[Blob]:
    return [blob for blob in _all(task) if blob.size > _SHARED_ABOVE]
