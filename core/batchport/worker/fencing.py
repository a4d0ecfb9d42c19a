"""Fencing: of two workers of one name, the older one stops before it sends or delivers anything more.

Called by `sending`, `results` and `polling` before each batch. Every start of a worker takes the next
epoch; a manifest is written before the epochs are looked at, so that whichever worker comes later either
sees the other's manifest or is seen.
"""

from __future__ import annotations

import math
import time

from batchport.errors import SupersededError
from batchport.worker.naming import Epoch, newer_start
from batchport.worker.storage import Storage

__all__ = ["Fence"]

_FRESH_S = 0.02
"""How long one look counts, in seconds: about as long as a call to a backend is in flight anyway."""


class Fence:
    """Knows which start of the worker this is."""

    def __init__(self, storage: Storage, epoch: Epoch) -> None:
        self._storage, self._epoch = storage, epoch
        self._looked_at = self._written_at = -math.inf

    def written(self) -> None:
        """Note that a manifest was written just now: an earlier look does not count for it."""
        self._written_at = time.monotonic()

    async def check(self) -> None:
        """Raise SupersededError if the worker was started again elsewhere; looks unless that was just done."""
        storage, now = self._storage, time.monotonic()
        if self._looked_at > max(self._written_at, now - _FRESH_S):
            return
        other = await storage.insist("look at the epochs", newer_start, storage.store, storage.keys, self._epoch)
        if other is not None:
            raise SupersededError(storage.keys.worker, other)
        self._looked_at = max(self._looked_at, now)
