"""Functions and arguments that several tasks share: stored once, removed when no task needs them.

Called by the engine, `outcomes` and `adoption`: a task holds its blobs from intake to outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from batchport.tasks import Blob, Task
from batchport.worker.storage import Storage
from batchport.worker.tracking import Entry

__all__ = ["SharedBlobs"]

_SHARED_ABOVE = 16 << 10
"""Bytes; a smaller blob costs less inside each payload than an object of its own."""


@dataclass(slots=True)
class _Shared:
    holders: int = 0
    stored: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedBlobs:
    """Which large blobs are in the store, and how many tasks hold each. `common` are held by every task."""

    def __init__(self, storage: Storage, common: Sequence[Blob] = ()) -> None:
        self._storage, self._common = storage, tuple(common)
        self._shared: dict[str, _Shared] = {}

    def hold(self, entry: Entry) -> None:
        """Keep the blobs of a task that a host has offered from being removed, until `let_go`."""
        keys = {blob.key for blob in entry.task.blobs if blob.size > _SHARED_ABOVE}
        keys.update(blob.key for blob in self._common)
        for key in keys.difference(entry.shared):
            self._shared.setdefault(key, _Shared()).holders += 1
        entry.shared = tuple(sorted(keys.union(entry.shared)))

    def adopt(self, entry: Entry) -> None:
        """Keep the blobs of a task of an earlier start, which stored them."""
        for key in entry.shared:
            shared = self._shared.setdefault(key, _Shared(stored=True))
            shared.holders += 1

    async def ready(self, tasks: Iterable[Task]) -> dict[str, bytes]:
        """Have all large blobs of held tasks in the store, and return the bytes of the small ones by key.

        Raises whatever a blob's `read` raises.
        """
        small: dict[str, bytes] = {}
        for blob in {blob.key: blob for task in tasks for blob in task.blobs}.values():
            if blob.size <= _SHARED_ABOVE:
                small[blob.key] = await blob.read()
            else:
                await self._store(blob)
        for blob in self._common:
            await self._store(blob)
        return small

    async def _store(self, blob: Blob) -> None:
        shared = self._shared[blob.key]
        async with shared.lock:
            if not shared.stored:
                data = await blob.read()
                key = self._storage.keys.blob(blob.key)
                await self._storage.insist(f"store {blob.size} bytes at {key}", self._storage.store.put, key, data)
                shared.stored = True

    async def let_go(self, entry: Entry) -> None:
        """Give up a task's hold, and remove the blobs that nobody holds any more."""
        for key in entry.shared:
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

    async def remove_strays(self) -> None:
        """Remove the blobs of an earlier start that no task needs. Raises StoreError."""
        names = await self._storage.do(self._storage.store.names, self._storage.keys.blobs)
        self._storage.throw_away(self._storage.keys.blob(name) for name in names if name not in self._shared)
