"""Functions and arguments that several tasks share: stored once, removed when no task needs them.

Called by the engine, `sending`, `outcomes` and `adoption`: a task holds its blobs from intake to outcome.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from batchport.tasks import Blob
from batchport.worker.storage import Storage
from batchport.worker.tracking import Entry, Job

__all__ = ["SharedBlobs"]

_SHARED_ABOVE = 16 << 10
"""Bytes; a smaller blob costs less inside each payload than an object of its own."""
_SHARED_IN_ARRAY_ABOVE = 256
"""Bytes; likewise of what several elements of one array need, each of which would carry it."""


@dataclass(slots=True)
class _Shared:
    holders: int = 0
    stored: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedBlobs:
    """Which blobs are in the store by themselves, and how many tasks hold each. `common` are held by every task."""

    def __init__(self, storage: Storage, common: Sequence[Blob] = ()) -> None:
        self._storage, self._common = storage, tuple(common)
        self._shared: dict[str, _Shared] = {}

    def hold(self, entry: Entry) -> None:
        """Keep the blobs of a task that a host has offered from being removed, until `let_go`."""
        keys = {blob.key for blob in entry.task.blobs if blob.size > _SHARED_ABOVE}
        keys.update(blob.key for blob in self._common)
        self._hold(entry, keys)

    def adopt(self, entry: Entry) -> None:
        """Keep the blobs of a task of an earlier start, which stored them."""
        for key in entry.shared:
            shared = self._shared.setdefault(key, _Shared(stored=True))
            shared.holders += 1

    async def ready(self, job: Job) -> dict[str, bytes]:
        """Have in the store what a new job's tasks share, and return the bytes of their other blobs by key.

        Raises whatever a blob's `read` raises.
        """
        if job.spec.size > 1:
            self._hold_common(job)
        shared = {key for entry in job.entries for key in entry.shared}
        small: dict[str, bytes] = {}
        for blob in {blob.key: blob for entry in job.entries for blob in entry.task.blobs}.values():
            if blob.key in shared:
                await self._store(blob)
            else:
                small[blob.key] = await blob.read()
        for blob in self._common:
            await self._store(blob)
        return small

    def _hold_common(self, job: Job) -> None:
        """Have the tasks of an array hold the blobs as well that would be in the payloads of several elements."""
        elements = Counter(
            blob.key
            for element in job.elements
            for blob in {blob.key: blob for entry in element.entries.values() for blob in entry.task.blobs}.values()
            if blob.size > _SHARED_IN_ARRAY_ABOVE
        )
        for entry in job.entries:
            self._hold(entry, {blob.key for blob in entry.task.blobs if elements[blob.key] > 1})

    def _hold(self, entry: Entry, keys: set[str]) -> None:
        for key in keys.difference(entry.shared):
            self._shared.setdefault(key, _Shared()).holders += 1
        entry.shared = tuple(sorted(keys.union(entry.shared)))

    async def _store(self, blob: Blob) -> None:
        if (shared := self._shared.get(blob.key)) is None:
            return  # the only task that needs it got its outcome meanwhile
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
                if self._shared.get(key) is shared and not shared.holders:  # it may be a newer one of this key
                    del self._shared[key]

    async def remove_strays(self) -> None:
        """Remove the blobs of an earlier start that no task needs. Raises StoreError."""
        names = await self._storage.do(self._storage.store.names, self._storage.keys.blobs)
        self._storage.throw_away(self._storage.keys.blob(name) for name in names if name not in self._shared)
