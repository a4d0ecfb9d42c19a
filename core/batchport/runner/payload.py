"""The payload of a job or of an array's element: found, checked, and taken apart into one Call for each place.

Called by pack.py. Nothing is unpickled here.
"""

from __future__ import annotations

import binascii
import os
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from batchport.envelope import LARGEST, PYTHON, Envelope
from batchport.errors import EnvelopeError
from batchport.runner.report import Report
from batchport.store import Keys, Store

__all__ = ["Call", "Payload", "ReportError"]

Ref = int | str
"""An index into the payload's parts, or the key of a blob."""

_ROW = struct.Struct(">QQ")
"""Where an element's payload is in the array's object: its start, in bytes from the object's, and its length."""


class ReportError(Exception):
    """Tasks cannot be run, for the reason in `report`. `places`: theirs, as far as whoever raises it can tell."""

    def __init__(self, report: Report, places: Sequence[int] = ()) -> None:
        super().__init__(report.message)
        self.report, self.places = report, places


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
    codec: str = "cloudpickle"
    """As a Task's."""


class Payload:
    """The payload of one pack, checked.

    `tasks` holds the ids of its tasks, the first of which has the place `first` in the job; `width` of them
    run at once. `close` it at the end.
    """

    def __init__(self, envelope: Envelope, store: Store, keys: Keys) -> None:
        fields = envelope.fields
        fields = fields["payload"] if envelope.kind == "manifest" else fields
        self._tasks = fields["tasks"]
        self._path = tuple(fields["path"])
        self._zips = fields.get("code", ())
        self._folder = ""
        self._parts, self._cloudpickle, self._codec = envelope.parts, envelope.cloudpickle, envelope.codec
        self._store, self._keys = store, keys
        self.tasks: list[str] = [task["id"] for task in self._tasks]
        self.first: int = fields.get("first", 0)
        self.width: int = fields.get("width", 1)
        self._blobs: dict[str, bytes] = {}
        # A blob that later tasks share is kept until the last of them has it.
        self._uses = Counter(ref for task in self._tasks for ref in _refs(task) if isinstance(ref, str))

    @classmethod
    def of_job(cls, manifest: bytes, inline: str | None, job: str, store: Store, keys: Keys) -> Payload:
        """Return the payload of `job`: `inline` if there is one, else the manifest's body.

        Raises ReportError where it is damaged, of another job, or of a Python that cannot be read here.
        """
        places = range(1)  # as there is at least one
        try:
            envelope = listed = Envelope.from_bytes(manifest, ("manifest",))
            places = _places(listed.fields)
            if inline is not None:
                envelope = Envelope.from_bytes(binascii.a2b_base64(inline, strict_mode=True), ("payload",))
            elif listed.fields.get("inline"):
                raise EnvelopeError("BATCHPORT_PAYLOAD, which should hold it, is not in the job's environment")
        except (EnvelopeError, binascii.Error) as error:
            raise ReportError(Report.unreadable(error), places) from error
        if listed.job != job:
            raise ReportError(Report.foreign(job, listed.job), places)
        payload = cls._checked(envelope, job, places, store, keys)
        if payload.tasks != listed.fields.get("tasks"):
            raise ReportError(Report.unreadable("its tasks are not those of the job's manifest"), places)
        return payload

    @classmethod
    def of_element(cls, element: str, job: str, store: Store, keys: Keys) -> Payload:
        """Return the payload of one element of the array `job`; `element` is "VAR:BASE".

        VAR is the variable in which the backend says which element this is, counted from BASE. However large
        the array is, only two rows of it and the element's own payload are read. Raises ReportError as `of_job`
        does, and where VAR names no element; and StoreError.
        """

        def read(start: int, length: int) -> bytes:
            data = store.get_range(keys.array(job), start, length)
            if data is None or len(data) < length:
                raise ReportError(Report.unreadable(f"{keys.array(job)} is not in the store, or cut off"))
            return data

        elements = _ROW.unpack(read(0, _ROW.size))[0] // _ROW.size  # the first payload follows the last row
        variable, _, base = element.rpartition(":")
        said = os.environ.get(variable, "")
        index = int(said) - int(base) if said.isdecimal() else -1
        if not 0 <= index < elements:
            # Any element's tasks may be meant, but where none can tell or base is wrong, the first's are among them.
            raise ReportError(Report.no_element(variable, said, int(base), elements), range(1))
        start, length = _ROW.unpack(read(index * _ROW.size, _ROW.size))
        if length > LARGEST or start >> 62:
            raise ReportError(Report.unreadable(f"row {index} of {keys.array(job)} is damaged"))
        try:
            envelope = Envelope.from_bytes(read(start, length), ("payload",))
        except EnvelopeError as error:
            raise ReportError(Report.unreadable(error)) from error
        return cls._checked(envelope, job, _places(envelope.fields), store, keys)

    @classmethod
    def _checked(cls, envelope: Envelope, job: str, places: Sequence[int], store: Store, keys: Keys) -> Payload:
        if envelope.job != job:
            raise ReportError(Report.foreign(job, envelope.job), places)
        if envelope.python != PYTHON:
            raise ReportError(Report.other_python(envelope.python), places)
        if envelope.codec not in ("cloudpickle", "serializer"):
            raise ReportError(Report.other_codec(envelope.codec), places)
        try:
            return cls(envelope, store, keys)
        except (KeyError, TypeError) as error:
            raise ReportError(Report.unreadable(error), places) from error

    def call(self, place: int) -> Call:
        """Return the call of one place, reading its blobs; places are asked for in order, each once.

        The first call unzips the code that came along. Raises ReportError if a blob is not there or the code is
        damaged, and StoreError.
        """
        if self._zips:
            self._unzip()
        task = self._tasks[place - self.first]
        return Call(
            self._bytes(task["function"]),
            tuple(self._bytes(ref) for ref in task["args"]),
            {name: self._bytes(ref) for name, ref in task["kwargs"].items()},
            self._path,
            self._cloudpickle,
            task["time_limit_s"],
            self._codec,
        )

    def preload(self) -> None:
        """Import what every child would import for itself, unless the tasks' own path may have another one."""
        if not self._zips and not any(Path(each, "cloudpickle").exists() for each in self._path):
            with suppress(ImportError):  # a child tells it, if it needs it
                import cloudpickle  # noqa: F401

    def close(self) -> None:
        """Remove the code that was unzipped, once no child needs it any more."""
        if self._folder:
            import shutil

            shutil.rmtree(self._folder, ignore_errors=True)

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

    def _unzip(self) -> None:
        """Put the code that came along first on the path."""
        import tempfile  # a plain job must not pay for it

        folders = []
        try:
            self._folder = self._folder or tempfile.mkdtemp(prefix="batchport-")
            for number, digest in enumerate(self._zips):
                key, folder = self._keys.blob(digest), f"{self._folder}/{number}"
                _unzip(key, self._store.get(key), folder)
                folders.append(folder)
        except OSError as error:
            raise ReportError(Report.cannot_unzip(error)) from error
        self._path, self._zips = (*folders, *self._path), ()


def _unzip(key: str, data: bytes | None, folder: str) -> None:
    import zipfile
    import zlib
    from io import BytesIO

    if data is None:
        raise ReportError(Report.bad_code(key, "is not in the store"))
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for name in archive.namelist():
                if name.startswith("/") or ".." in name.split("/"):
                    raise ReportError(Report.bad_code(key, f"would write to {name!r}, outside of its folder"))
            archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ReportError(Report.bad_code(key, f"is damaged: {error}")) from error


def _refs(task: dict[str, Any]) -> list[Ref]:
    return [task["function"], *task["args"], *task["kwargs"].values()]


def _places(fields: Mapping[str, Any]) -> range:
    """Return the places that a manifest or payload is about, as far as one that may be damaged tells: at least one."""
    try:
        first = fields.get("first", 0)
        return range(first, first + max(1, len(fields["tasks"])))
    except (KeyError, TypeError):
        return range(1)
