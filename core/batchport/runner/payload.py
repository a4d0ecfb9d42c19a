"""The payload of a job: found, checked, and taken apart into one Call for each place.

Called by pack.py. Nothing is unpickled here.
"""

from __future__ import annotations

import binascii
from collections import Counter
from typing import Any, NamedTuple

from batchport.envelope import PYTHON, Envelope
from batchport.errors import EnvelopeError
from batchport.runner.report import Report
from batchport.store import Keys, Store

__all__ = ["Call", "Payload", "ReportError"]

Ref = int | str
"""An index into the payload's parts, or the key of a blob."""


class ReportError(Exception):
    """A task cannot be run, for the reason in `report`."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.message)
        self.report = report


class Call(NamedTuple):
    """What a child needs to make one call: pickled function and arguments, and how they were pickled."""

    function: bytes
    args: tuple[bytes, ...]
    kwargs: dict[str, bytes]
    path: tuple[str, ...]
    """What to put first on `sys.path`."""
    cloudpickle: str
    """The version that pickled them, "" if unknown."""
    time_limit_s: int | None


class Payload:
    """One job's payload, checked. `tasks` holds the ids by place."""

    def __init__(self, envelope: Envelope, store: Store, keys: Keys) -> None:
        fields = envelope.fields
        fields = fields["payload"] if envelope.kind == "manifest" else fields
        self._tasks = fields["tasks"]
        self._path = tuple(fields["path"])
        self._parts, self._cloudpickle = envelope.parts, envelope.cloudpickle
        self._store, self._keys = store, keys
        self.tasks: list[str] = [task["id"] for task in self._tasks]
        self._blobs: dict[str, bytes] = {}
        # A blob that later tasks share is kept until the last of them has it.
        self._uses = Counter(ref for task in self._tasks for ref in _refs(task) if isinstance(ref, str))

    @classmethod
    def read(cls, manifest: bytes, inline: str | None, job: str, store: Store, keys: Keys) -> Payload:
        """Return the payload of `job`: `inline` if there is one, else the manifest's body.

        Raises ReportError where it is damaged, of another job, or of a Python that cannot be read here.
        """
        try:
            listed = Envelope.from_bytes(manifest, ("manifest",))
            if inline is None and listed.fields.get("inline"):
                raise EnvelopeError("BATCHPORT_PAYLOAD, which should hold it, is not in the job's environment")
            envelope = listed
            if inline is not None:
                envelope = Envelope.from_bytes(binascii.a2b_base64(inline, strict_mode=True), ("payload",))
        except (EnvelopeError, binascii.Error) as error:
            raise ReportError(Report.unreadable(error)) from error
        if envelope.job != job or listed.job != job:
            raise ReportError(Report.foreign(job, envelope.job if envelope.job != job else listed.job))
        if envelope.python != PYTHON:
            raise ReportError(Report.other_python(envelope.python))
        if envelope.codec != "cloudpickle":
            raise ReportError(Report.other_codec(envelope.codec))
        try:
            payload = cls(envelope, store, keys)
        except (KeyError, TypeError) as error:
            raise ReportError(Report.unreadable(error)) from error
        if payload.tasks != listed.fields.get("tasks"):
            raise ReportError(Report.unreadable("its tasks are not those of the job's manifest"))
        return payload

    @staticmethod
    def places(manifest: bytes) -> int:
        """Return how many tasks the job has, as far as a manifest that may be damaged tells: at least 1."""
        try:
            return max(1, len(Envelope.from_bytes(manifest, ("manifest",)).fields["tasks"]))
        except (EnvelopeError, KeyError, TypeError):
            return 1

    def call(self, place: int) -> Call:
        """Return the call of one place, reading its blobs; places are asked for in order, each once.

        Raises ReportError if a blob is not there, and StoreError.
        """
        task = self._tasks[place]
        return Call(
            self._bytes(task["function"]),
            tuple(self._bytes(ref) for ref in task["args"]),
            {name: self._bytes(ref) for name, ref in task["kwargs"].items()},
            self._path,
            self._cloudpickle,
            task["time_limit_s"],
        )

    def _bytes(self, ref: Ref) -> bytes:
        if isinstance(ref, int):
            return self._parts[ref]
        data = self._blobs.get(ref)
        if data is None:
            data = self._store.get(key := self._keys.blob(ref))
            if data is None:
                raise ReportError(Report.no_blob(key))
        self._uses[ref] -= 1
        if self._uses[ref]:
            self._blobs[ref] = data
        else:
            self._blobs.pop(ref, None)
        return data


def _refs(task: dict[str, Any]) -> list[Ref]:
    return [task["function"], *task["args"], *task["kwargs"].values()]
