"""The simulated AWS of `aws_batch.py`: Batch and S3 as in the tests, but jobs only pretend, and calls are counted.

`_aws_server.py PORT PLACES SECONDS`. PLACES jobs run at once, for SECONDS each, and do nothing; at its end a job leaves
in S3 the results that its runner would leave, past the API, so that every call that is counted is of a worker. A first
GET or any later one of /counted answers with what was asked since the last one, and forgets it.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

# Beside this file is one that is called as upstream's package.
sys.path.append(sys.path.pop(0))

from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication

from batchport.envelope import Envelope
from batchport.store import Keys, OutKey
from batchport.testing.aws import server
from batchport.testing.aws.jobs import LOCK, BatchJob, now_ms
from batchport.testing.aws.rules import ESSENTIAL
from batchport.testing.aws.scheduler import Scheduler
from batchport.testing.aws.settings import ACCOUNT

BATCH = {
    name.lower(): name
    for name in ("SubmitJob", "DescribeJobs", "ListJobs", "TerminateJob", "TerminateJobs", "DescribeJobQueues")
}
S3 = {"PUT": "PutObject", "GET": "GetObject", "DELETE": "DeleteObject", "HEAD": "HeadObject", "POST": "DeleteObjects"}
IN_PARTS = {
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
}
RESULT = pickle.dumps(None)

counted: Counter[str] = Counter()
put_bytes = 0
counting = threading.Lock()
answer: Callable[..., Any] = DomainDispatcherApplication.__call__


def count_and_answer(self: DomainDispatcherApplication, environ: dict[str, Any], start_response: Any) -> Any:
    """Answer a request as moto does, and note what it was."""
    global put_bytes  # noqa: PLW0603 - one server a process
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if path == "/counted":
        with counting:
            told = json.dumps({"calls": counted, "put_bytes": put_bytes}).encode()
            counted.clear()
            put_bytes = 0
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(told)))])
        return [told]
    with counting:
        counted[_name_of(method, path, environ.get("QUERY_STRING", ""))] += 1
        if method == "PUT":
            put_bytes += int(environ.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") or environ.get("CONTENT_LENGTH") or 0)
    return answer(self, environ, start_response)


def _name_of(method: str, path: str, query: str) -> str:
    """Return what AWS calls a request."""
    if found := re.fullmatch(r"/v1/(\w+)", path):
        return BATCH.get(found[1], found[1])
    for part, name in IN_PARTS.items():
        if (method, query.partition("=")[0]) == part:
            return name
    return "ListObjectsV2" if "list-type" in query else S3.get(method, method)


class Pretending(Scheduler):
    """Has each job take its time, and leave its results."""

    seconds = 0.0

    def _run(self, job: BatchJob) -> None:
        job.began_ms, job.status = now_ms(), "RUNNING"
        time.sleep(self.seconds)
        for bucket, key, data in results_of(job):
            get_backend("s3")[ACCOUNT]["aws"].put_object(bucket, key, data)
        with LOCK:
            job.exit_code = 0
            job.finish("SUCCEEDED", ESSENTIAL)
            self._running.discard(job)
        self._wake.set()


def results_of(job: BatchJob) -> Iterable[tuple[str, str, bytes]]:
    """Return bucket, key and bytes of what a runner leaves: ours, or upstream's job_runner.py."""
    env = job.environment
    if "BATCHPORT_JOB" not in env:
        return [("lab", f"scaler-tasks/results/{job.job_id}.pkl", RESULT)]
    name, store, keys = env["BATCHPORT_JOB"], urlsplit(env["BATCHPORT_STORE"]), Keys(env["BATCHPORT_WORKER"])
    bucket, folder = store.netloc, store.path.strip("/")
    tasks, each = manifest(bucket, f"{folder}/{keys.manifest(name)}")
    first = (job.index or 0) * each
    result = Envelope("result", name, parts=(RESULT, b""), fields={"nonce": "00000000"}).to_bytes()
    return [
        (bucket, f"{folder}/{keys.left(OutKey(name, place, 'result'))}", result)
        for place in range(first, min(first + each, tasks))
    ]


@lru_cache
def manifest(bucket: str, key: str) -> tuple[int, int]:
    """Return how many tasks a job has, and each of its elements."""
    found = get_backend("s3")[ACCOUNT]["aws"].get_object(bucket, key)
    assert found is not None, key  # it is there before its job is submitted
    fields = Envelope.from_bytes(found.value, ("manifest",)).fields
    return len(fields["tasks"]), fields["per_element"]


if __name__ == "__main__":
    port, places, seconds = sys.argv[1:]
    Pretending.seconds = float(seconds)
    server.Scheduler = Pretending  # type: ignore[attr-defined]
    DomainDispatcherApplication.__call__ = count_and_answer  # type: ignore[method-assign]
    sys.argv[1:] = ["--port", port, "--max-running", places]
    server._main()  # noqa: SLF001 - its only door is a command line, which can't change it
