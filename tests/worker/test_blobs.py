"""Shared blobs are in the books for as long as anybody holds them, whoever lets go of them meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from batchport import Blob, Task
from batchport.store import FolderStore, Keys
from batchport.worker.blobs import SharedBlobs
from batchport.worker.storage import Storage
from batchport.worker.tracking import Entry


async def test_a_blob_that_is_held_again_while_it_is_removed_stays(tmp_path: Path) -> None:
    storage = Storage(FolderStore(tmp_path), Keys("w"))
    blobs, blob = SharedBlobs(storage), Blob.of(bytes(50_000))
    first, second, third = (Entry(Task(each, blob)) for each in "123")
    blobs.hold(first)
    await blobs._store(blob)
    going = [asyncio.create_task(blobs.let_go(first))]
    await asyncio.sleep(0)
    blobs.hold(second)
    going.append(asyncio.create_task(blobs.let_go(second)))
    while blob.key in blobs._shared:
        await asyncio.sleep(0)
    blobs.hold(third)
    await asyncio.gather(*going)
    await blobs._store(blob)
    assert storage.store.names(storage.keys.blobs) == [blob.key]
    await blobs.let_go(third)
    assert storage.store.names(storage.keys.blobs) == []
    storage.close()
