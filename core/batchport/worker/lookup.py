"""Looking jobs up by name: what became of a submit whose answer is not known.

Called by `sending` after an ambiguous answer, and by `adoption` for jobs that an earlier start made and
noted no id of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from batchport.worker.calls import Backoff, Calls

__all__ = ["Lookup"]

_log = logging.getLogger("batchport.worker")


class Lookup:
    """Asks the backend by name, as long as it takes, and ends a second job of one name."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def ids(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the ids of all jobs of each name, [] where there are none.

        Asks again until there is an answer, since nothing may be sent before. Raises NotImplementedError
        if the backend can't be asked.
        """
        backoff = Backoff()
        while True:
            try:
                found = set(await self._calls.find_jobs(names))
            except NotImplementedError:
                raise
            except Exception as error:  # noqa: BLE001 - reported, and asked again
                delay = backoff.next()
                _log.warning("find_jobs failed, will ask again in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)
            else:
                return {name: sorted(job_id for known, job_id in found if known == name) for name in names}

    async def cancel_twins(self, name: str, ids: Sequence[str]) -> None:
        """Cancel the jobs that there should not be beside the one of that name."""
        if not ids:
            return
        _log.warning("there are %d jobs named %s; cancelling %s", len(ids) + 1, name, ", ".join(ids))
        try:
            await self._calls.cancel_jobs(ids)
        except Exception as error:  # noqa: BLE001 - the first result counts, whichever job it comes from
            _log.warning("could not cancel %s: %s", ", ".join(ids), error)
