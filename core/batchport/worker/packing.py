"""Which tasks share a job: the queue of waiting tasks, and packs taken from it.

Called by the engine, on its event loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping

from batchport.jobs import Resources
from batchport.worker.tracking import Entry

__all__ = ["Waiting"]


class Waiting:
    """The tasks that have no job yet, first come first served among tasks of equal resources.

    A pack holds tasks of equal resources and codec only, since all run in one job.
    """

    def __init__(self) -> None:
        # Kind -> task id -> entry; both levels in order of arrival, so that a cancel costs no search.
        self._kinds: OrderedDict[Hashable, OrderedDict[str, Entry]] = OrderedDict()
        self._kind_of: dict[str, Hashable] = {}

    def __len__(self) -> int:
        return len(self._kind_of)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._kind_of

    def add(self, entry: Entry, *, first: bool = False) -> None:
        """Queue a task; `first` puts one that was sent before ahead of its kind, since it has waited already."""
        kind = (entry.task.codec, _hashable(entry.task.resources))
        same = self._kinds.setdefault(kind, OrderedDict())
        same[entry.task.id] = entry
        self._kind_of[entry.task.id] = kind
        if first:
            same.move_to_end(entry.task.id, last=False)
            self._kinds.move_to_end(kind, last=False)

    def remove(self, task_id: str) -> Entry | None:
        """Take out one task; None if it does not wait."""
        if (kind := self._kind_of.pop(task_id, None)) is None:
            return None
        entry = self._kinds[kind].pop(task_id)
        if not self._kinds[kind]:
            del self._kinds[kind]
        return entry

    def pack(self, most: int) -> list[Entry]:
        """Take out up to `most` tasks that may share a job; [] if none waits.

        The kind whose turn it was goes to the end, so that no kind waits for all of another.
        """
        if not self._kinds:
            return []
        kind, same = next(iter(self._kinds.items()))
        entries = [same.popitem(last=False)[1] for _ in range(min(most, len(same)))]
        for entry in entries:
            del self._kind_of[entry.task.id]
        self._kinds.move_to_end(kind)
        if not same:
            del self._kinds[kind]
        return entries

    def next_is_full(self, most: int) -> bool:
        """Return whether the next pack would hold `most` tasks, so that waiting for more gains nothing."""
        return bool(self._kinds) and len(next(iter(self._kinds.values()))) >= most


def _hashable(resources: Resources) -> Hashable:
    extra: Mapping[str, object] = resources.extra
    return (
        resources.cpus,
        resources.memory_mib,
        resources.gpus,
        resources.time_limit_s,
        tuple(sorted((name, repr(value)) for name, value in extra.items())) if extra else (),
    )
