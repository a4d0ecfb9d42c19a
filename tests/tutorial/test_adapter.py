"""The tutorial's adapter, beyond the suite: what is special about Task Spooler, on the real one."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from batchport import BackendFullError, BackendUnusableError, BatchWorkerAdapterBase, JobSpec, JobState, Resources
from batchport.jobs import JobStatus


@pytest.fixture
def module(scaffold: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the adapter's module, with this test's queue as the one that `tsp` uses."""
    for name in ("TS_SOCKET", "TMPDIR"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.syspath_prepend(scaffold / "src")
    return importlib.import_module("tsp_backend.adapter")


@pytest.fixture
def adapter(module: Any) -> Any:
    return module.Adapter(importlib.import_module("tsp_backend.options").Options())


def job(name: str, *command: str, resources: Resources | None = None) -> JobSpec:
    return JobSpec(name, "job", command, {}, resources or Resources())


async def ended(adapter: Any, job_id: str) -> JobStatus:
    while True:
        for status in await adapter.poll_jobs([job_id]):
            assert isinstance(status, JobStatus)
            if status.state.is_final:
                return status


@pytest.mark.parametrize(("command", "code"), [(("false",), 1), (("no-such-program",), 127)])
async def test_exit_codes_are_as_the_job_gave_them(adapter: Any, command: tuple[str, ...], code: int) -> None:
    await adapter.open("worker")
    status = await ended(adapter, await adapter.submit_job(job("job-a", *command)))
    assert (status.state, status.exit_code) == (JobState.FAILED, code)


@pytest.mark.parametrize("code", [126, 128, 200, 254])
async def test_exit_codes_that_tsp_lists_as_negative_are_turned_back(adapter: Any, tmp_path: Path, code: int) -> None:
    (tmp_path / "program").write_text(f"exit {code}\n", encoding="utf-8")
    await adapter.open("worker")
    status = await ended(adapter, await adapter.submit_job(job("job-a", "bash", str(tmp_path / "program"))))
    assert (status.state, status.exit_code) == (JobState.FAILED, code)


async def test_a_full_queue_is_said_and_leaves_no_job_behind(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_MAXCONN", "8")  # the server keeps five connections for questions
    await adapter.open("worker")
    running = [await adapter.submit_job(job(f"job-{number}", "sleep", "30")) for number in (1, 2)]
    with pytest.raises(BackendFullError, match="queue full"):
        await adapter.submit_job(job("job-3", "sleep", "30"))
    assert await adapter.find_jobs(["job-1", "job-2", "job-3"]) == [("job-1", running[0]), ("job-2", running[1])]
    for job_id in reversed(running):
        await adapter.cancel_job(job_id)


async def test_jobs_are_unknown_once_their_server_is_gone_and_old_ids_harm_nobody(adapter: Any, tmp_path: Path) -> None:
    await adapter.open("worker")
    old = await adapter.submit_job(job("job-old", "true"))
    await ended(adapter, old)
    await adapter._tsp("-K")
    while (tmp_path / "queue").exists():
        await asyncio.sleep(0.01)
    assert await adapter.poll_jobs([old]) == []
    new = await adapter.submit_job(job("job-new", "sleep", "30"))
    assert new.partition(".")[0] == old.partition(".")[0]
    await adapter.cancel_job(old)
    assert [status.state.is_final for status in await adapter.poll_jobs([old, new])] == [False]
    await adapter.cancel_job(new)


async def test_another_queue_is_an_option(module: Any, adapter: Any, tmp_path: Path) -> None:
    other = module.Adapter(importlib.import_module("tsp_backend.options").Options(socket=str(tmp_path / "other")))
    try:
        await other.open("worker")
        job_id = await other.submit_job(job("job-a", "true"))
        await adapter.open("worker")
        assert await adapter.poll_jobs([job_id]) == []
        assert (await ended(other, job_id)).state is JobState.SUCCEEDED
    finally:
        await other._tsp("-K")


async def test_without_tsp_the_adapter_says_how_to_install_it(
    adapter: BatchWorkerAdapterBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    opening: Any = adapter.open("worker")
    with pytest.raises(BackendUnusableError, match=r"No such file or directory: tsp\. Is it .* task-spooler$"):
        await opening


@pytest.mark.parametrize(
    ("row", "state", "code"),
    [
        ("4    queued     (file)                                       [job-a]sleep 3", JobState.QUEUED, None),
        ("4    running    (...)                                        [job-a]sleep 3", JobState.STARTING, None),
        ("4    running    /tmp/ts-out.FZGxkS                         [job-a]sleep 3", JobState.RUNNING, None),
        ("4    dreaming   /tmp/ts-out.FZGxkS                         [job-a]sleep 3", JobState.RUNNING, None),
        ("4    finished   /a b/ts-out.gwIz9m 0        0.00/0.00/0.00 [job-a]sleep 3", JobState.SUCCEEDED, 0),
        ("4    finished   /tmp/ts-out.gwIz9m -56      0.00/0.00/0.00 [job-a]sleep 3", JobState.FAILED, 200),
        ("4    finished   /tmp/ts-out.gwIz9m -1       0.00/0.00/0.00 [job-a]sleep 3", JobState.FAILED, None),
    ],
)
def test_a_row_of_the_listing_is_read(module: Any, row: str, state: JobState, code: int | None) -> None:
    read: Callable[..., JobStatus] = module._status
    (status,) = [read(*fields) for fields in module.ROW.findall(row)]
    assert (status.job_id, status.name, status.state, status.exit_code) == ("4.job-a", "job-a", state, code)


@pytest.mark.parametrize(
    "row",
    [
        "ID   State      Output               E-Level  Times(r/u/s)   Command [run=2/2]",
        "4    finished   (...)                -1       0.00/0.00/0.00 [job-a]sleep 3",
        "4    finished   /tmp/ts-out.gwIz9m   0        0.00/0.00/0.00 sleep 3",
    ],
    ids=["the heading", "a job that was refused", "a job of others, without a label"],
)
def test_a_row_that_is_no_job_of_ours_is_left_out(module: Any, row: str) -> None:
    assert module.ROW.findall(row) == []
