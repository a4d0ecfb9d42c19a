"""Fencing: of two workers of one name, the older one stops before it sends or delivers anything more.

Called by `sending`, `results` and `polling` before each batch. Every start of a worker takes the next
epoch; a manifest is written before the epochs are looked at, so that whichever worker comes later either
sees the other's manifest or is seen.
"""

from __future__ import annotations

from batchport.errors import SupersededError
from batchport.worker.naming import Epoch, newer_start
from batchport.worker.storage import Storage

__all__ = ["Fence"]


class Fence:
    """Knows which start of the worker this is."""

    def __init__(self, storage: Storage, epoch: Epoch) -> None:
        self._storage, self._epoch = storage, epoch

    async def check(self) -> None:
        """Raise SupersededError if the worker was started again elsewhere."""
        storage = self._storage
        other = await storage.insist("look at the epochs", newer_start, storage.store, storage.keys, self._epoch)
        if other is not None:
            raise SupersededError(storage.keys.worker, other)
