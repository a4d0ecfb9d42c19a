"""Our ScalerWorker in a process of its own; run by `_scaler_runs.py`.

`_scaler_worker.py SCHEDULER FOLDER BACKEND SLOTS JOBS_AT_ONCE TASKS_PER_JOB`. Told to end, it drains, and leaves in
FOLDER/put how many bytes it has put into the store.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from pathlib import Path

# Beside this file is one that is called as upstream's package.
sys.path.append(sys.path.pop(0))

from engine import LARGEST, backend

from batchport import BatchWorkerAdapterBase
from batchport.backends.local import LocalAdapter, Options
from batchport.hosts.scaler import ScalerWorker
from batchport.store import FolderStore, Store

NAME = "bench"


class CountingStore(FolderStore):
    """A folder store that knows how many bytes were put into it by this process."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.put_bytes, self._lock = 0, threading.Lock()

    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        with self._lock:
            self.put_bytes += len(data)
        return super().put(key, data, create=create)


async def run(adapter: BatchWorkerAdapterBase, store: Store | str, scheduler: str, jobs: int, tasks: int) -> None:
    """Serve until told to end."""
    host = ScalerWorker(scheduler, adapter, store, NAME, max_jobs=jobs, tasks_per_job=tasks)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, host.drain)
    await host.run()


def main() -> None:
    """Run what the command line asks for."""
    scheduler, folder, kind, *numbers = sys.argv[1:]
    slots, jobs, tasks = map(int, numbers)
    logging.basicConfig(level=logging.INFO)
    if kind == "nothing":
        with backend(folder, LARGEST) as (adapter, url):
            asyncio.run(run(adapter, url, scheduler, jobs, tasks))
        return
    store = CountingStore(Path(folder, "store"))
    local = LocalAdapter(Options(folder=str(Path(folder, "jobs")), slots=slots))
    asyncio.run(run(local, store, scheduler, jobs, tasks))
    Path(folder, "put").write_text(str(store.put_bytes), "utf-8")


if __name__ == "__main__":
    main()
