"""The wire format: everything that worker, runner and hosts leave for each other in the store.

Called by the worker (manifests, payloads), the runner (results, evidence) and hosts. Standard library
only, since the runner imports it before anything else.

An envelope is a magic number, the header's length, a place of 32 bytes for a signature (zeros until
envelopes are signed), the header (JSON) and the body: the parts, one after the other, gzipped together
where that makes them smaller. Nothing in a body is unpickled here.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchport.errors import EnvelopeError, VersionError

__all__ = ["LARGEST", "PROTOCOL", "PYTHON", "Envelope"]

PROTOCOL = 1
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LARGEST = 8 << 30
"""The largest body, in bytes once unzipped, that is read; a header that promises more is refused."""

_MAGIC = b"bprt"
_START = struct.Struct(">4sI32s")
_GZIP_ABOVE = 4096
_UNSIGNED = bytes(32)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message: what it is (`kind`), whose it is (`job`, `task`), plain `fields`, and `parts` of bytes.

    `cloudpickle` is the version that pickled the parts, "" if none did; `python` likewise, as "3.11".
    `fields` is any JSON object.
    """

    kind: str
    job: str
    task: str = ""
    parts: tuple[bytes, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    codec: str = "cloudpickle"
    python: str = PYTHON
    cloudpickle: str = ""

    def to_bytes(self) -> bytes:
        """Return the envelope as bytes that `from_bytes` reads back."""
        body = b"".join(self.parts)
        size, encoding = len(body), "plain"
        if size > _GZIP_ABOVE:
            # Level 1: payloads are mostly pickles and arrays, where higher levels cost time and save little.
            zipped = zlib.compress(body, 1)
            if len(zipped) < size:
                body, encoding = zipped, "gzip"
        header = {
            "protocol": PROTOCOL,
            "kind": self.kind,
            "task": self.task,
            "job": self.job,
            "python": self.python,
            "cloudpickle": self.cloudpickle,
            "codec": self.codec,
            "encoding": encoding,
            "sizes": [len(part) for part in self.parts],
            "digest": hashlib.sha256(body).hexdigest(),
            "fields": dict(self.fields),
        }
        head = json.dumps(header, separators=(",", ":")).encode()
        return b"".join((_START.pack(_MAGIC, len(head), _UNSIGNED), head, body))

    @classmethod
    def from_bytes(cls, data: bytes, kinds: Iterable[str]) -> Envelope:
        """Read an envelope of one of `kinds`, checking header, sizes and digest before the body is used.

        Raises EnvelopeError if the bytes are damaged, cut off, of another kind or promise more than
        LARGEST bytes, and VersionError if they are of a protocol that this version does not speak.
        """
        header, body = _header(data)
        kind = header["kind"]
        if kind not in (wanted := tuple(kinds)):
            message = f"this is a {kind!r}, where a {' or '.join(map(repr, wanted))} belongs"
            raise EnvelopeError(message)
        if hashlib.sha256(body).hexdigest() != header["digest"]:
            message = f"the {kind} of job {header['job']} is damaged: its digest does not match its {len(body)} bytes"
            raise EnvelopeError(message)
        return cls(
            kind=kind,
            job=header["job"],
            task=header["task"],
            parts=_parts(header, body),
            fields=header["fields"],
            codec=header["codec"],
            python=header["python"],
            cloudpickle=header["cloudpickle"],
        )


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    if len(data) < _START.size or data[:4] != _MAGIC:
        message = f"these {len(data)} bytes are not an envelope of batchport's"
        raise EnvelopeError(message)
    _, length, _ = _START.unpack_from(data)
    start = _START.size + length
    try:
        header = json.loads(data[_START.size : start])
        protocol = header["protocol"]
        if protocol != PROTOCOL:
            message = (
                f"it speaks protocol {protocol} and this batchport speaks {PROTOCOL}: "
                "install the same batchport release on both sides"
            )
            raise VersionError(message)
        for name, kind in _SHAPE.items():
            if not isinstance(header[name], kind):
                raise TypeError(name)
        if not all(type(size) is int and size >= 0 for size in header["sizes"]):
            raise ValueError("sizes")
    except (ValueError, KeyError, TypeError) as error:
        message = f"the envelope's header is damaged or cut off: {error!r}"
        raise EnvelopeError(message) from error
    return header, data[start:]


_SHAPE: Mapping[str, type] = {
    **dict.fromkeys(("kind", "task", "job", "python", "cloudpickle", "codec", "encoding", "digest"), str),
    "sizes": list,
    "fields": dict,
}


def _parts(header: Mapping[str, Any], body: bytes) -> tuple[bytes, ...]:
    sizes: list[int] = header["sizes"]
    total = sum(sizes)
    if total > LARGEST:
        message = f"the envelope promises {total} bytes, more than the {LARGEST} that are read"
        raise EnvelopeError(message)
    if header["encoding"] == "gzip":
        try:
            body = zlib.decompressobj().decompress(body, total + 1)
        except zlib.error as error:
            message = f"the envelope's body cannot be unzipped: {error}"
            raise EnvelopeError(message) from error
    if len(body) != total:
        message = f"the envelope promises {total} bytes and holds {len(body)}"
        raise EnvelopeError(message)
    parts, at = [], 0
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    return tuple(parts)
