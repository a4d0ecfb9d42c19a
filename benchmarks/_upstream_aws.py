"""The peer: upstream's AWS Batch worker as its manager starts it, on a stand-in for AWS; run by `_scaler_runs.py`.

`_upstream_aws.py SCHEDULER FOLDER BACKEND SLOTS JOBS_AT_ONCE`. Nothing of upstream is changed: what it makes in
`_start_unit` (worker_manager/proxy/aws_batch/worker_manager.py) runs in this process. `boto3` is what stands below.
BACKEND "nothing": Batch has done a job as soon as it is submitted, and its result is None. BACKEND "processes": S3 is
a folder, and Batch runs SLOTS jobs at once, each a process of upstream's own job_runner.py; what a job said that
failed is in FOLDER/failed. Told to end, it leaves in FOLDER/put how many bytes it has put into S3.
"""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import quote

# Beside this file is one that is called as upstream's package.
sys.path.append(sys.path.pop(0))

FOLDER = "BENCH_S3"
"""The variable that tells a job where S3's folder is."""


class FolderS3:
    """S3 as upstream calls it: a folder."""

    exceptions = SimpleNamespace(NoSuchKey=FileNotFoundError)

    def __init__(self, folder: Path) -> None:
        self._folder, self.put_bytes, self._lock = folder, 0, threading.Lock()
        folder.mkdir(exist_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / quote(key, safe="")

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803, ARG002 - boto3's names
        with self._lock:
            self.put_bytes += len(Body)
        draft = self._folder / f".{uuid.uuid4().hex}"
        draft.write_bytes(Body)
        draft.replace(self._path(Key))

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803, ARG002 - boto3's names
        return {"Body": io.BytesIO(self._path(Key).read_bytes())}

    def delete_object(self, *, Bucket: str, Key: str) -> None:  # noqa: N803, ARG002 - boto3's names
        self._path(Key).unlink(missing_ok=True)


class ProcessBatch:
    """Batch as upstream calls it: so many jobs at once, each a process of upstream's job_runner.py."""

    def __init__(self, folder: Path, failed: Path, slots: int) -> None:
        self._env, self._failed = {**os.environ, FOLDER: str(folder)}, failed
        self._pool = ThreadPoolExecutor(slots)
        self._states: dict[str, str] = {}

    def submit_job(
        self,
        *,
        parameters: Mapping[str, str],
        arrayProperties: Mapping[str, int] | None = None,  # noqa: N803 - boto3's name
        **_rest: Any,
    ) -> dict[str, str]:
        job = str(uuid.uuid4())
        words = [f"--{name}={value}" for name, value in parameters.items()]
        for index in range((arrayProperties or {}).get("size", 0)):
            env = {"AWS_BATCH_JOB_ID": f"{job}:{index}", "AWS_BATCH_JOB_ARRAY_INDEX": str(index)}
            self._start(f"{job}:{index}", words, env)
        if not arrayProperties:
            self._start(job, words, {"AWS_BATCH_JOB_ID": job})
        return {"jobId": job}

    def _start(self, job: str, words: list[str], env: Mapping[str, str]) -> None:
        self._states[job] = "RUNNABLE"
        self._pool.submit(self._run, job, words, env)

    def _run(self, job: str, words: list[str], env: Mapping[str, str]) -> None:
        command = [sys.executable, __file__, "--job", *words]
        done = subprocess.run(command, env={**self._env, **env}, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            self._failed.write_bytes(done.stdout)
        self._states[job] = "FAILED" if done.returncode else "SUCCEEDED"

    def describe_jobs(self, *, jobs: list[str]) -> dict[str, Any]:
        reason = "Essential container in task exited"  # what AWS says of a job that exited with 1
        return {"jobs": [{"jobId": each, "status": self._states[each], "statusReason": reason} for each in jobs]}

    def close(self) -> None:
        """Start nothing more, and wait for what runs."""
        self._pool.shutdown(cancel_futures=True)


def stand_in_for_boto3(clients: Mapping[str, Any]) -> None:
    """Have `import boto3` give these clients."""
    boto3: Any = ModuleType("boto3")
    boto3.client = lambda name, **_options: clients[name]
    boto3.Session = lambda **_options: boto3
    exceptions: Any = ModuleType("botocore.exceptions")
    exceptions.ClientError = type("ClientError", (Exception,), {})
    sys.modules.update({"boto3": boto3, "botocore": ModuleType("botocore"), "botocore.exceptions": exceptions})


def run_job() -> None:
    """Be a job: upstream's runner as the script that it is."""
    from importlib.util import find_spec

    del sys.argv[1]
    spec = find_spec("scaler")  # does not import it, as jobs don't
    assert spec is not None
    assert spec.submodule_search_locations is not None
    stand_in_for_boto3({"s3": FolderS3(Path(os.environ[FOLDER]))})
    script = Path(spec.submodule_search_locations[0], "worker_manager/proxy/aws_batch/remote/job_runner.py")
    runpy.run_path(str(script), run_name="__main__")


def main() -> None:
    """Run what the command line asks for."""
    import cloudpickle
    from _upstream import InstantAws
    from scaler.config.types.address import AddressConfig
    from scaler.worker_manager.proxy.aws_batch.worker import create_aws_batch_worker

    scheduler, name, kind, *numbers = sys.argv[1:]
    folder, (slots, jobs) = Path(name), map(int, numbers)
    s3, batch = FolderS3(folder / "s3"), ProcessBatch(folder / "s3", folder / "failed", slots)
    instant = InstantAws(cloudpickle.dumps(None))
    stand_in_for_boto3({"s3": instant, "batch": instant} if kind == "nothing" else {"s3": s3, "batch": batch})
    worker = create_aws_batch_worker(
        address=AddressConfig.from_string(scheduler),
        object_storage_address=None,
        job_queue="queue",
        job_definition="definition",
        aws_region="us-east-1",
        s3_bucket="bucket",
        worker_manager_id=b"aws",
        base_concurrency=jobs,
    )
    try:
        worker.run()
    finally:
        batch.close()
        (folder / "put").write_text(str(s3.put_bytes), "utf-8")


if __name__ == "__main__":
    run_job() if sys.argv[1] == "--job" else main()
