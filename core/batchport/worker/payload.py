"""What a job is given: its manifest in the store, its payload inline or in the manifest, shared blobs beside it.

Called by the engine for each job that it makes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cloudpickle

from batchport.envelope import Envelope
from batchport.tasks import Blob, Task

__all__ = ["Payload", "make_payload"]


@dataclass(frozen=True, slots=True)
class Payload:
    """A job's manifest, as bytes, and its payload as text for the job's environment (None: in the manifest)."""

    manifest: bytes
    inline: str | None


def make_payload(
    job: str, tasks: Sequence[Task], small: Mapping[str, bytes], path: Sequence[str], inline_bytes: int
) -> Payload:
    """Build what a job is given. `small` holds the bytes, by key, of each blob that is not stored by itself."""
    parts = list(small.values())
    place_of = {key: place for place, key in enumerate(small)}

    def ref(blob: Blob) -> int | str:
        return place_of.get(blob.key, blob.key)

    fields = {
        "tasks": [
            {
                "id": task.id,
                "function": ref(task.function),
                "args": [ref(blob) for blob in task.args],
                "kwargs": {name: ref(blob) for name, blob in task.kwargs.items()},
                "time_limit_s": task.resources.time_limit_s,
            }
            for task in tasks
        ],
        "path": list(path),
    }
    codec, version = tasks[0].codec, cloudpickle.__version__
    payload = Envelope("payload", job, parts=tuple(parts), fields=fields, codec=codec, cloudpickle=version)
    ids = [task.id for task in tasks]
    if inline_bytes and len(data := payload.to_bytes()) <= inline_bytes:
        manifest = Envelope("manifest", job, fields={"tasks": ids, "inline": True})
        return Payload(manifest.to_bytes(), base64.b64encode(data).decode())
    manifest = Envelope(
        "manifest",
        job,
        parts=tuple(parts),
        fields={"tasks": ids, "inline": False, "payload": fields},
        codec=codec,
        cloudpickle=version,
    )
    return Payload(manifest.to_bytes(), None)
