"""The peer: opengris-scaler from PyPI in an environment of its own, and its TaskManager with its AWS backend.

Imported by the benchmarks, for `python_of_upstream`. Run by that Python, without batchport, as
`_upstream.py TASKS CONCURRENCY CAP_S`, it drives upstream's TaskManager and prints one line of JSON.

Nothing of upstream is changed. Its connection to the scheduler and its object storage are tables in memory that answer
at once. So are its AWS clients, and a job has ended well as soon as it is submitted; but where a fourth word names the
queue, job definition and bucket of an AWS, it has boto3's own, and AWS_ENDPOINT_URL leads them there.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import resource
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

# Beside this file is one that is called as upstream's package.
if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))

from _environments import python_with

__all__ = ["VERSION", "InstantAws", "python_of_upstream"]

VERSION = "2.9.0"


def python_of_upstream() -> str:
    """Return the Python that has opengris-scaler, boto3 and moto. Raises MissingPeerError."""
    return python_with(f"opengris-scaler-{VERSION}", f"opengris-scaler=={VERSION}", "boto3", "moto[server]")


class InstantAws:
    """S3 and Batch as upstream calls them."""

    exceptions = SimpleNamespace(NoSuchKey=KeyError)

    def __init__(self, result: bytes) -> None:
        self._result, self._ids = result, itertools.count(1)
        self.objects: dict[str, bytes] = {}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803, ARG002 - boto3's names
        self.objects[Key] = Body

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803, ARG002 - boto3's names
        return {"Body": io.BytesIO(self._result)}

    def delete_object(self, *, Bucket: str, Key: str) -> None:  # noqa: N803, ARG002 - boto3's names
        self.objects.pop(Key, None)

    def submit_job(self, **_request: Any) -> dict[str, str]:
        return {"jobId": f"job-{next(self._ids)}"}

    def describe_jobs(self, *, jobs: list[str]) -> dict[str, Any]:
        return {"jobs": [{"jobId": each, "status": "SUCCEEDED"} for each in jobs]}


class _Storage:
    """Upstream's object storage."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}

    async def get_object(self, object_id: bytes) -> bytes:
        return self.objects[object_id]

    async def set_object(self, object_id: bytes, data: bytes) -> None:
        self.objects[object_id] = data


class _Scheduler:
    """Upstream's connection to the scheduler: counts the results that come back."""

    def __init__(self, most: int) -> None:
        self.results, self._most, self.all_there = 0, most, asyncio.Event()

    async def send(self, message: Any, *, detached: bool) -> None:  # noqa: ARG002 - upstream's name
        if type(message).__name__ == "TaskResult":
            self.results += 1
            if self.results == self._most:
                self.all_there.set()


async def _drive(count: int, concurrency: int, cap_s: float, real: str) -> dict[str, Any]:
    import boto3
    import cloudpickle
    from scaler.client.serializer.default import DefaultSerializer
    from scaler.protocol.capnp import Task
    from scaler.utility.event_loop import create_async_loop_routine
    from scaler.utility.identifiers import ClientID, ObjectID, TaskID
    from scaler.worker_manager.proxy.aws_batch.execution_backend import AWSBatchExecutionBackend
    from scaler.worker_manager.proxy.task_manager import TaskManager

    if not real:
        aws = InstantAws(cloudpickle.dumps(None))
        boto3.Session = lambda **_options: SimpleNamespace(client=lambda _name: aws)
    storage, scheduler = _Storage(), _Scheduler(count)
    client = ClientID.generate_client_id()
    function = ObjectID.generate_object_id(client)
    storage.objects[ObjectID.generate_serializer_object_id(client)] = cloudpickle.dumps(DefaultSerializer)
    storage.objects[function] = DefaultSerializer.serialize(len)
    backend = AWSBatchExecutionBackend(real or "queue", real or "definition", "us-east-1", real or "bucket")
    manager = TaskManager(concurrency, backend, idle_sleep_seconds=0.1)  # as its AWS worker sets it
    manager.register(scheduler, storage, None)
    # The three loops that its WorkerProcess runs for it.
    loops = [
        asyncio.create_task(create_async_loop_routine(routine, 0))
        for routine in (backend.routine, manager.process_task, manager.resolve_tasks)
    ]
    start, cpu = time.monotonic(), time.process_time()
    for _ in range(count):
        argument = ObjectID.generate_object_id(client)
        storage.objects[argument] = DefaultSerializer.serialize([])
        place = Task.Argument(type=Task.Argument.ArgumentType.objectID, data=argument)
        task = Task(
            taskId=TaskID.generate_task_id(),
            source=client,
            metadata=b"",
            funcObjectId=function,
            functionArgs=[place],
            capabilities={},
        )
        await manager.on_task_new(task)
    with suppress(TimeoutError):  # as many as came are counted
        await asyncio.wait_for(scheduler.all_there.wait(), cap_s)
    took, cpu = time.monotonic() - start, time.process_time() - cpu
    for loop in loops:
        loop.cancel()
    return {
        "tasks": count,
        "concurrency": concurrency,
        "done": scheduler.results,
        "seconds": took,
        "tasks_per_s": scheduler.results / took,
        "cpu_ms_per_task": 1000 * cpu / max(1, scheduler.results),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    tasks, at_once, cap, *named = sys.argv[1:]
    print(json.dumps(asyncio.run(_drive(int(tasks), int(at_once), float(cap), "".join(named)))), flush=True)
