"""What a job is given: its manifest in the store, and its payload, inline or in the manifest or in an array's object.

Called by `sending` for each job that it makes, and by `adoption`, which reads the manifests of an earlier
start. The runner's side is `batchport.runner.payload`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from batchport.envelope import Envelope
from batchport.jobs import JobSpec, Resources
from batchport.tasks import Blob, Task
from batchport.worker.tracking import Entry, Job

__all__ = ["Made", "make_payload", "read_manifest"]

_ROW = struct.Struct(">QQ")
"""Where an element's payload is in the array's object: its start and its length."""


@dataclass(frozen=True, slots=True)
class Made:
    """The manifest as bytes, and the payload: text for the job's environment, or an array's object, or neither."""

    manifest: bytes
    inline: str | None = None
    array: bytes | None = None


def make_payload(job: Job, small: Mapping[str, bytes], common: Mapping[str, Any], inline_bytes: int) -> Made:
    """Build what a job is given.

    `small` holds the bytes, by key, of each blob that is not stored by itself; `common` are fields that
    every payload of this worker has. A plain job's payload travels inline where it has at most
    `inline_bytes` bytes, else in the manifest; an array's in an object that its elements read in part.
    """
    payloads = [_payload(job, element.index, small, common) for element in job.elements]
    if job.spec.size > 1:
        return Made(_manifest(job, inline=False).to_bytes(), array=_array([each.to_bytes() for each in payloads]))
    (payload,) = payloads
    if inline_bytes and len(data := payload.to_bytes()) <= inline_bytes:
        return Made(_manifest(job, inline=True).to_bytes(), inline=base64.b64encode(data).decode())
    return Made(_manifest(job, inline=False, payload=payload).to_bytes())


def _payload(job: Job, index: int, small: Mapping[str, bytes], common: Mapping[str, Any]) -> Envelope:
    tasks = [entry.task for entry in job.elements[index].entries.values()]
    own = {blob.key: small[blob.key] for task in tasks for blob in task.blobs if blob.key in small}
    place_of = {key: place for place, key in enumerate(own)}

    def ref(blob: Blob) -> int | str:
        return place_of.get(blob.key, blob.key)

    rows = [
        {
            "id": task.id,
            "function": ref(task.function),
            "args": [ref(blob) for blob in task.args],
            "kwargs": {name: ref(blob) for name, blob in task.kwargs.items()},
            "time_limit_s": task.resources.time_limit_s,
        }
        for task in tasks
    ]
    fields = {"tasks": rows, "first": index * job.per_element, **common}
    parts = tuple(own.values())
    return Envelope(
        "payload", job.name, parts=parts, fields=fields, codec=tasks[0].codec, cloudpickle=cloudpickle.__version__
    )


def _array(payloads: Sequence[bytes]) -> bytes:
    rows, start = [], _ROW.size * len(payloads)
    for each in payloads:
        rows.append(_ROW.pack(start, len(each)))
        start += len(each)
    return b"".join((*rows, *payloads))


def _manifest(job: Job, *, inline: bool, payload: Envelope | None = None) -> Envelope:
    entries, need = job.entries, job.spec.resources
    fields: dict[str, Any] = {
        "tasks": [entry.task.id for entry in entries],
        "inline": inline,
        "size": job.spec.size,
        "per_element": job.per_element,
        "label": job.spec.label,
        "resources": [need.cpus, need.memory_mib, need.gpus, need.time_limit_s],
    }
    # Only what is not as usual: a manifest is written for each job.
    if any(entry.shared for entry in entries):
        fields["shared"] = [entry.shared for entry in entries]
    if any(entry.attempts for entry in entries):
        fields["attempts"] = [entry.attempts for entry in entries]
    if payload is None:
        return Envelope("manifest", job.name, fields=fields)
    fields["payload"] = payload.fields
    return Envelope(
        "manifest",
        job.name,
        parts=payload.parts,
        fields=fields,
        codec=payload.codec,
        cloudpickle=payload.cloudpickle,
    )


def read_manifest(data: bytes) -> tuple[JobSpec, int, list[Entry]]:
    """Read the manifest of a job that an earlier start has made: the job, its tasks per element, its tasks.

    The job can't be submitted from it, and the tasks can't be sent again before the host offers them.
    Raises EnvelopeError, and what a field of a wrong kind raises.
    """
    manifest = Envelope.from_bytes(data, ("manifest",))
    fields = manifest.fields
    cpus, memory_mib, gpus, time_limit_s = fields["resources"]
    resources = Resources(cpus, memory_mib, gpus, time_limit_s)
    spec = JobSpec(manifest.job, fields["label"], (), {}, resources, fields["size"])
    tasks = fields["tasks"]
    shared, attempts = fields.get("shared", [()] * len(tasks)), fields.get("attempts", [0] * len(tasks))
    entries = [
        Entry(Task(task_id, _GONE, resources=resources), attempts=tried, shared=tuple(keys), offered=False)
        for task_id, keys, tried in zip(tasks, shared, attempts, strict=True)
    ]
    return spec, fields["per_element"], entries


_GONE = Blob.of(b"")
"""Stands for a function whose bytes are in no worker any more."""
